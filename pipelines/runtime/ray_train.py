"""A fit under Ray Train: one `TorchTrainer` around the same job that runs alone elsewhere.

Ray Train starts the processes, joins them (gloo, or NCCL on GPUs) and starts all of them again
when one dies. It keeps no checkpoint of ours: the job writes its own into its progress folder, by
digest, and resumes from there, whoever runs it.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import ray

from pipelines.errors import Diverged, PipelineError, UsageError
from pipelines.runtime.ray_pool import Answer, portable
from pipelines.runtime.stage import FitGroup

__all__ = ["fit_in_ray_train"]

_log = logging.getLogger(__name__)

R = TypeVar("R")

_COLLECTIVE_SECONDS = 600
_POLL_SECONDS = "0.2"


def fit_in_ray_train(
    job: Callable[..., R], workers: int, *, folder: Path, gpu: bool = False, failures: int = 2
) -> R:
    """Runs `job(group=FitGroup(...))` in every process; returns what rank 0 returned.

    May be called from several threads at once; needs a running Ray.

    Args:
        job: picklable; takes `group`; resumes from its own progress folder.
        workers: processes, one CPU each.
        folder: on a disk that all processes share: Ray Train's own notes, removed at the end.
        gpu: whether each wants a GPU where the cluster has one a worker.
        failures: how often all processes are started again after one died.

    Raises:
        PipelineError: when Ray has fewer CPUs than `workers`, or a process died too often.
        BaseException: what the job raised.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_SECONDS)
    from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

    use_gpu = _check_resources(workers, gpu)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    for attempt in range(failures + 1):
        try:
            answer = _train(job, workers, folder=folder, use_gpu=use_gpu, failures=failures)
        except TrainingFailedError as error:
            last = str(error).strip().splitlines()[-1].partition(". ")[0]
            # Ray Train does not try again when a process dies while the group still starts
            if isinstance(error, ControllerError) and attempt < failures:
                _log.warning("training did not start (%s); it is started again", last)
                continue
            raise PipelineError(
                f"training: a process failed more than {failures} times ({last}); "
                "mend the cause and run again: it resumes"
            ) from error
        if answer.error is not None:
            raise answer.error
        result: R = answer.result
        return result
    raise AssertionError("the last attempt returns or raises")


def _check_resources(workers: int, gpu: bool) -> bool:
    """Refuses more workers than CPUs; whether each can have a GPU."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if resources.get("CPU", 0) < workers:
        raise PipelineError(
            f"training wants {workers} workers, Ray has {resources.get('CPU', 0):g} CPUs; "
            "lower `workers` or join a larger cluster"
        )
    return gpu and resources.get("GPU", 0) >= workers


def _train(
    job: Callable[..., Any], workers: int, *, folder: Path, use_gpu: bool, failures: int
) -> Answer:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    name = uuid.uuid4().hex  # a name of its own: nothing of an earlier attempt is mixed in
    loop: Any = _loop  # its result is rank 0's answer, which the stubs do not know yet
    trainer = TorchTrainer(
        loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        torch_config=TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=_COLLECTIVE_SECONDS
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=failures),
        ),
    )
    try:
        answer: Answer = cast("Any", trainer.fit()).return_value
    finally:
        shutil.rmtree(folder / name, ignore_errors=True)
    return answer


def _loop(settings: dict[str, Any]) -> Answer:
    """What each process runs."""
    import ray.train
    import torch
    from ray.train.torch import get_device, prepare_model

    device: Any = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # "cuda" is this process's own from here on
    context = ray.train.get_context()
    group = FitGroup(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        wrap=prepare_model,
        after_checkpoint=_acknowledge,
    )
    try:
        return Answer(settings["job"](group=group))
    except (Diverged, UsageError) as error:
        return Answer(error=portable(error))  # every process comes to it: trying again is in vain
    except Exception as error:
        if group.world_size > 1:
            raise  # the other processes wait for this one: Ray Train ends them
        return Answer(error=portable(error))


def _acknowledge(step: int) -> None:
    """Tells Ray Train that the checkpoint of `step` is on the disk; waits for all ranks."""
    import ray.train

    ray.train.report({"step": step})
