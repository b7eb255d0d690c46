"""The one training loop: AdamW, warm-up, linear decay, clipping, early stopping, exact resume.

What is fitted comes in as a `FitTask`; validation, reporting and wrapping (DDP) come in as
callables, so the loop knows no cluster and no data. Optimiser settings follow RA-CM3 (Adam betas
.9 and .98, warm-up, linear decay, clipping at 1.0; arXiv:2211.12561).

The schedule runs over *progress*: steps done / `steps`, or, with a `flops_budget`, FLOPs done /
budget. So models whose sequences differ in length get the same budget and each a whole schedule.

Resuming is exact because nothing carries state but the checkpoint: a batch is a function of
(seed, step, rank), and so is the noise of dropout, whose generator is seeded anew at every step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from racm3.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_folders,
    load_optimizer_tensors,
    module_tensors,
    optimizer_tensors,
    prune_checkpoints,
    read_checkpoint,
    valid_checkpoints,
    write_checkpoint,
)
from racm3.training.records import (
    FitConfig,
    FitResult,
    FitTask,
    HasAfterStep,
    HasParameterGroups,
    HasState,
    LogRow,
    Stop,
)
from racm3.training.tallies import Metric, Tally, added, as_tallies, means

__all__ = ["FitConfig", "FitResult", "FitTask", "LogRow", "fit"]

_STEP = "step"
_BEST = "best"
_DROPOUT_PURPOSE = 0x6669_7421
"""Keeps the noise of dropout apart from other streams made of the same seed, step and rank."""

Validate = Callable[[nn.Module], dict[str, float]]


def fit(
    task: FitTask,
    config: FitConfig,
    *,
    checkpoint_dir: Path | None = None,
    validate: Validate | None = None,
    report: Callable[[LogRow], None] | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    after_checkpoint: Callable[[int, Path], None] | None = None,
    rank: int = 0,
    world_size: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> FitResult:
    """Fits a task, from its newest valid checkpoint when there is one.

    Interrupted anywhere and called again with the same arguments, it ends with the same bytes
    (weights, optimiser, log without seconds) as if it never was; on a GPU, with the same batches.

    Args:
        task: What is fitted. It must start from the same weights every time (seed its making).
        config: How long and how fast.
        checkpoint_dir: Folder shared by all ranks; `None` keeps the best weights in memory only.
        validate: Takes the bare model in evaluation mode and returns numbers; ``loss`` decides
            early stopping. Called without gradients on every rank; rank 0's numbers count.
        report: Sees every row of the log as it is written (of rank 0).
        wrap: Makes the trained module of the bare one (DDP).
        after_checkpoint: Called on every rank with the steps done and the published folder.
        rank: Of this process, in [0, world_size).
        world_size: Processes; above 1 `torch.distributed` must be initialised.
        clock: Seconds, for `LogRow.seconds` only.

    Returns:
        The result; `task.model` is the bare model with the best weights.

    Raises:
        CheckpointError: The folder's checkpoints are of another configuration, or none is whole.
        FloatingPointError: A loss or gradient is not finite.
        KeyError: `validate` returned no ``loss``.
    """
    bare = task.model
    run = _Run(task, config, bare, checkpoint_dir, rank=rank, world_size=world_size)
    run.resume()
    task.model = wrap(bare) if wrap is not None else bare
    started = clock() - run.seconds
    try:
        with _own_noise():
            while run.stopped is None:
                run.take_step()
                run.seconds = clock() - started
                ended = run.end_reached()
                run.log_train(report, last=ended is not None)
                if validate is not None and (run.due(config.validate_every) or ended is not None):
                    run.log_validation(_agreed(validate, bare, world_size), report)
                    ended = ended or run.out_of_patience()
                run.stopped = ended
                if checkpoint_dir is not None and (run.due(config.checkpoint_every) or ended):
                    path = run.save(checkpoint_dir)
                    if after_checkpoint is not None:
                        after_checkpoint(run.step, path)
    finally:
        task.model = bare
    return run.finish()


class _Run:
    """The mutable state of one call of `fit`."""

    def __init__(
        self,
        task: FitTask,
        config: FitConfig,
        bare: nn.Module,
        root: Path | None,
        *,
        rank: int,
        world_size: int,
    ) -> None:
        self.task, self.config, self.bare, self.root = task, config, bare, root
        self.rank, self.world_size = rank, world_size
        self.parameters = [p for p in bare.parameters() if p.requires_grad]
        self.optimizer = _adamw(task, bare, config)
        self.step, self.flops, self.tokens, self.seconds = 0, 0.0, 0.0, 0.0
        self.learning_rate, self.grad_norm = 0.0, 0.0
        self.best_step, self.best_loss, self.bad_validations = 0, None, 0
        self.best_state: dict[str, Tensor] | None = None
        self.sums: dict[str, Tally] = {}
        self.log: list[LogRow] = []
        self.stopped: Stop | None = None

    best_loss: float | None

    def take_step(self) -> None:
        self.bare.train()
        torch.manual_seed(_noise_seed(self.config.seed, self.step, self.rank))
        loss, metrics = self.task.loss(self.step, rank=self.rank, world_size=self.world_size)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.grad_norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
        if not np.isfinite(self.grad_norm):
            raise FloatingPointError(
                f"The gradient of step {self.step} is not finite (loss {loss.item()}): "
                "lower learning_rate or lengthen warmup_steps."
            )
        self.learning_rate = self.config.learning_rate_at(step=self.step, flops=self.flops)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group.get("lr_scale", 1.0)
        self.optimizer.step()
        if isinstance(self.task, HasAfterStep):
            with torch.no_grad():
                self.task.after_step(self.step)
        self._count(metrics)

    def _count(self, metrics: Mapping[str, Metric]) -> None:
        tallies = as_tallies(metrics)
        tokens, _ = tallies.pop("tokens", (0.0, 1.0))
        names = sorted(tallies)
        local = [self.task.step_flops(self.step), tokens]
        local += [number for name in names for number in tallies[name]]
        total = _sum_over_ranks(local, self.world_size, self.parameters[0].device)
        self.flops += total[0]
        self.tokens += total[1]
        pairs = zip(total[2::2], total[3::2], strict=True)
        self.sums = added(self.sums, dict(zip(names, pairs, strict=True)))
        self.step += 1

    def due(self, every: int) -> bool:
        return self.step % every == 0

    def end_reached(self) -> Stop | None:
        if self.config.flops_budget is not None and self.flops >= self.config.flops_budget:
            return "flops"
        if self.config.steps is not None and self.step >= self.config.steps:
            return "steps"
        return None

    def out_of_patience(self) -> Stop | None:
        patience = self.config.patience
        return "patience" if patience is not None and self.bad_validations >= patience else None

    def log_train(self, report: Callable[[LogRow], None] | None, *, last: bool) -> None:
        if not (last or self.due(self.config.log_every)):
            return
        self._append("train", means(self.sums), report)
        self.sums = {}

    def log_validation(
        self, metrics: dict[str, float], report: Callable[[LogRow], None] | None
    ) -> None:
        loss = metrics["loss"]
        if self.best_loss is None or loss < self.best_loss:
            self.best_step, self.best_loss, self.bad_validations = self.step, loss, 0
            self._keep_best()
        else:
            self.bad_validations += 1
        self._append("validation", metrics, report)

    def _append(
        self,
        split: Literal["train", "validation"],
        metrics: dict[str, float],
        report: Callable[[LogRow], None] | None,
    ) -> None:
        row = LogRow(
            step=self.step,
            split=split,
            metrics=metrics,
            tokens=self.tokens,
            flops=self.flops,
            learning_rate=self.learning_rate,
            grad_norm=self.grad_norm,
            seconds=self.seconds,
        )
        self.log.append(row)
        if report is not None and self.rank == 0:
            report(row)

    def _keep_best(self) -> None:
        if self.root is None:
            self.best_state = {k: v.clone() for k, v in module_tensors(self.bare).items()}
        elif self.rank == 0:
            parts = {"model": module_tensors(self.bare)}
            state = {"step": self.step, "loss": self.best_loss}
            write_checkpoint(self.root, prefix=_BEST, step=self.step, tensors=parts, state=state)

    def save(self, root: Path) -> Path:
        if self.rank == 0:
            tensors = {
                "model": module_tensors(self.bare),
                "optimizer": optimizer_tensors(self.optimizer),
            }
            if isinstance(self.task, HasState):
                tensors["task"] = dict(self.task.state_dict())
            path = write_checkpoint(
                root, prefix=_STEP, step=self.step, tensors=tensors, state=self._state()
            )
            self._prune(root)
        if self.world_size > 1:
            torch.distributed.barrier()
        return path if self.rank == 0 else checkpoint_folders(root, prefix=_STEP)[0]

    def _prune(self, root: Path) -> None:
        kept = checkpoint_folders(root, prefix=_STEP)[: self.config.keep_checkpoints]
        prune_checkpoints(root, prefix=_STEP, keep={path.name for path in kept})
        needed = {f"{_BEST}-{self.best_step:09d}"}
        for path in kept[1:]:
            try:
                needed.add(f"{_BEST}-{read_checkpoint(path).state['best_step']:09d}")
            except CheckpointError:
                continue
        prune_checkpoints(root, prefix=_BEST, keep=needed)

    def _state(self) -> dict[str, Any]:
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return {
            **counters,
            "log": [asdict(row) for row in self.log],
            "config": _plain(self.config),
            "world_size": self.world_size,
        }

    def resume(self) -> None:
        if self.root is None or not checkpoint_folders(self.root, prefix=_STEP):
            return
        for checkpoint in valid_checkpoints(self.root, prefix=_STEP):
            if self._usable(checkpoint):
                self._load(checkpoint)
                return
        raise CheckpointError(
            f"No checkpoint under {self.root} is whole: remove the folder to start afresh."
        )

    def _usable(self, checkpoint: Checkpoint) -> bool:
        state = checkpoint.state
        mine = {"config": _plain(self.config), "world_size": self.world_size}
        if {key: state[key] for key in mine} != mine:
            raise CheckpointError(
                f"{checkpoint.path} was written with another FitConfig or number of workers: "
                "resume with the same ones or use another folder."
            )
        if state["best_loss"] is None:
            return True
        try:
            read_checkpoint(checkpoint.path.parent / f"{_BEST}-{state['best_step']:09d}")
        except CheckpointError:
            return False
        return True

    def _load(self, checkpoint: Checkpoint) -> None:
        for name in _COUNTERS:
            setattr(self, name, checkpoint.state[name])
        self.log = [LogRow(**row) for row in checkpoint.state["log"]]
        self.bare.load_state_dict(dict(checkpoint.tensors["model"]))
        load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])
        if isinstance(self.task, HasState):
            self.task.load_state_dict(checkpoint.tensors["task"])

    def finish(self) -> FitResult:
        best_path = None
        if self.best_loss is None:
            self.best_step = self.step
        if self.root is not None:
            prefix = _STEP if self.best_loss is None else _BEST
            best = read_checkpoint(self.root / f"{prefix}-{self.best_step:09d}")
            best_path = best.path
            self.bare.load_state_dict(dict(best.tensors["model"]))
        elif self.best_state is not None:
            self.bare.load_state_dict(self.best_state)
        self.bare.eval()
        return FitResult(
            best_step=self.best_step,
            best_loss=self.best_loss,
            best_path=best_path,
            steps=self.step,
            flops=self.flops,
            tokens=self.tokens,
            stopped=self.stopped or "steps",
            log=tuple(self.log),
        )


_COUNTERS = (
    *("step", "flops", "tokens", "seconds", "learning_rate", "grad_norm", "best_step"),
    *("best_loss", "bad_validations", "sums", "stopped"),
)


def _plain(config: FitConfig) -> Any:
    return json.loads(json.dumps(asdict(config)))


def _adamw(task: FitTask, model: nn.Module, config: FitConfig) -> torch.optim.AdamW:
    if isinstance(task, HasParameterGroups):
        groups = task.parameter_groups(config.weight_decay)
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _noise_seed(seed: int, step: int, rank: int) -> int:
    words = np.random.SeedSequence((_DROPOUT_PURPOSE, seed, step, rank)).generate_state(
        2, np.uint32
    )
    return int(words[0]) << 31 ^ int(words[1])


@contextmanager
def _own_noise() -> Iterator[None]:
    """Leaves torch's global generators as they were: dropout can draw from no other."""
    with torch.random.fork_rng():
        yield


def _sum_over_ranks(values: list[float], world_size: int, device: torch.device) -> list[float]:
    if world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total.tolist()]


def _agreed(validate: Validate, model: nn.Module, world_size: int) -> dict[str, float]:
    """Validates in evaluation mode; every rank gets rank 0's numbers, so that all stop together."""
    model.eval()
    with torch.no_grad():
        metrics = validate(model)
    if world_size == 1:
        return metrics
    names = sorted(metrics)
    device = next(model.parameters()).device
    numbers = torch.tensor([metrics[n] for n in names], dtype=torch.float64, device=device)
    torch.distributed.broadcast(numbers, src=0)
    return dict(zip(names, map(float, numbers.tolist()), strict=True))
