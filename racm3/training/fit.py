"""The one training loop: AdamW, warm-up, linear decay, clipping, early stopping, exact resume.

What is fitted comes in as a `FitTask`; validation, reporting and wrapping (DDP, FSDP2) come in as
callables, so the loop knows no cluster and no data. Optimiser settings follow RA-CM3 (Adam betas
.9 and .98, warm-up, linear decay, clipping at 1.0; arXiv:2211.12561).

The schedule runs over *progress*: steps done / `steps`, or, with a `flops_budget`, FLOPs done /
budget. So models whose sequences differ in length get the same budget and each a whole schedule.

Resuming is exact because nothing carries state but the checkpoint: a batch is a function of
(seed, step, rank), and so is the noise of dropout, whose generator is seeded anew at every step.
A checkpoint holds whole tensors, whoever wrote it: where the batch of all ranks together does not
depend on their number, another number of ranks may go on. It then comes to the same result but for
the order in which floating-point numbers are summed (and for dropout, drawn by each rank; and, with
a `flops_budget`, for padding, which ranks add each to their own rows).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from racm3.training.optimiser import adamw, clip_gradients, set_learning_rate
from racm3.training.ranks import (
    gradient_exchange,
    noise_seed,
    of_rank_zero,
    own_noise,
    sum_over_ranks,
)
from racm3.training.records import (
    FitConfig,
    FitResult,
    FitTask,
    HasAfterStep,
    HasExamples,
    HasMicroBatches,
    LogRow,
    NonFiniteLoss,
    Stop,
)
from racm3.training.run_state import Counters, RunState
from racm3.training.sharding import trained_module
from racm3.training.tallies import Metric, Tally, added, as_tallies, means

__all__ = ["FitConfig", "FitResult", "FitTask", "LogRow", "fit"]

Validate = Callable[[nn.Module], dict[str, float]]
Report = Callable[[LogRow], None]


def fit(
    task: FitTask,
    config: FitConfig,
    *,
    checkpoint_dir: Path | None = None,
    validate: Validate | None = None,
    report: Report | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    after_checkpoint: Callable[[int, Path], None] | None = None,
    rank: int = 0,
    world_size: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> FitResult:
    """Fits a task, from its newest valid checkpoint when there is one.

    Interrupted anywhere and called again with the same arguments, it ends with the same bytes
    (weights, optimiser, log without seconds) as if it never was; on a GPU, with the same batches;
    with another `world_size`, equal up to floating-point summation (see the module).

    Args:
        task: What is fitted. It must start from the same weights every time (seed its making).
        config: How long and how fast.
        checkpoint_dir: Folder shared by all ranks; `None` keeps the best weights in memory only.
        validate: Takes the model in evaluation mode, not wrapped by DDP, and returns numbers;
            ``loss`` decides early stopping. Called without gradients on every rank; rank 0's
            numbers count.
        report: Sees every row of the log as it is written (of rank 0).
        wrap: Makes the trained module of the bare one: around it (DDP), or with parameters of its
            own (`racm3.training.sharding.shard_blocks`).
        after_checkpoint: Called on every rank with the steps done and the published folder.
        rank: Of this process, in [0, world_size).
        world_size: Processes; above 1 `torch.distributed` must be initialised.
        clock: Seconds, for `LogRow.seconds` only.

    Returns:
        The result; `task.model` is the bare model with the best weights.

    Raises:
        CheckpointError: The folder's checkpoints are of another configuration, or none is whole.
        NonFiniteLoss: A loss or gradient is not finite (a `FloatingPointError`); on every rank,
            before the step was taken: the newest checkpoint is a good one.
        KeyError: `validate` returned no ``loss``.
        ValueError: `config.accumulate` is above 1 and the task has no micro-batches.
    """
    bare = task.model
    task.model = wrap(bare) if wrap is not None else bare
    try:
        run = _Run(task, config, bare, checkpoint_dir, rank=rank, world_size=world_size)
        run.state.resume()
        started = clock() - run.counters.seconds
        with own_noise():
            while run.counters.stopped is None:
                run.take_step()
                run.counters.seconds = clock() - started
                ended = run.end_reached()
                run.log_train(report, last=ended is not None)
                if validate is not None and (run.due(config.validate_every) or ended is not None):
                    run.log_validation(run.measured(validate), report)
                    ended = ended or run.out_of_patience()
                run.counters.stopped = ended
                if checkpoint_dir is not None and (run.due(config.checkpoint_every) or ended):
                    path = run.state.save(checkpoint_dir)
                    if after_checkpoint is not None:
                        after_checkpoint(run.counters.step, path)
    finally:
        task.model = bare
    return run.finish(bare)


class _Run:
    """One call of `fit`: steps, and the rows of its log."""

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
        if config.accumulate > 1 and not isinstance(task, HasMicroBatches):
            raise ValueError(
                f"{type(task).__name__} has no micro-batches: FitConfig.accumulate must be 1."
            )
        self.task, self.config = task, config
        self.rank, self.world_size = rank, world_size
        self.model = trained_module(bare, task.model)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = adamw(task, self.model, config)
        self.state = RunState(
            task, config, self.model, self.optimizer, root, rank=rank, world_size=world_size
        )

    @property
    def counters(self) -> Counters:
        return self.state.counters

    def take_step(self) -> None:
        counters = self.counters
        self.model.train()
        torch.manual_seed(noise_seed(self.config.seed, counters.step, self.rank))
        self.optimizer.zero_grad(set_to_none=True)
        loss, tokens, tallies = self._gradients()
        grad_norm = clip_gradients(self.parameters, self.config.clip)
        flops, tokens, loss, tallies = self._summed(tokens, loss, tallies)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise self._not_finite(loss, grad_norm)
        rate = self.config.learning_rate_at(step=counters.step, flops=counters.flops)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        if isinstance(self.task, HasAfterStep):
            with torch.no_grad():
                self.task.after_step(counters.step)
        counters.learning_rate, counters.grad_norm = rate, grad_norm
        counters.flops += flops
        counters.tokens += tokens
        counters.sums = added(counters.sums, tallies)
        counters.step += 1

    def _gradients(self) -> tuple[float, float, dict[str, Tally]]:
        """Adds up the gradients of the step's micro-batches; this rank's loss, tokens, tallies."""
        losses = self._losses()
        parts = self.config.accumulate
        share = 1.0 / (parts * self.world_size)
        total, tokens, tallies = 0.0, 0.0, dict[str, Tally]()
        for part in range(parts):
            with gradient_exchange(self.task.model, now=part == parts - 1):
                loss, metrics = next(losses)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            logged = dict(metrics)
            tokens += as_tallies({"tokens": logged.pop("tokens", 0.0)})["tokens"][0]
            tallies = added(tallies, as_tallies(logged, share=share))
        return total, tokens, tallies

    def _losses(self) -> Iterator[tuple[Tensor, Mapping[str, Metric]]]:
        step, ranks = self.counters.step, {"rank": self.rank, "world_size": self.world_size}
        if self.config.accumulate > 1 and isinstance(self.task, HasMicroBatches):
            yield from self.task.micro_losses(step, parts=self.config.accumulate, **ranks)
        else:
            yield self.task.loss(step, **ranks)

    def _summed(
        self, tokens: float, loss: float, tallies: Mapping[str, Tally]
    ) -> tuple[float, float, float, dict[str, Tally]]:
        """FLOPs and tokens of all ranks, the mean of their losses, and their tallies added up."""
        names = sorted(tallies)
        local = [self.task.step_flops(self.counters.step), tokens, loss]
        local += [number for name in names for number in tallies[name]]
        flops, tokens, loss, *numbers = sum_over_ranks(
            local, world_size=self.world_size, device=self.parameters[0].device
        )
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return flops, tokens, loss / self.world_size, dict(zip(names, pairs, strict=True))

    def _not_finite(self, loss: float, grad_norm: float) -> NonFiniteLoss:
        step = self.counters.step
        examples = self.task.examples_of(step) if isinstance(self.task, HasExamples) else None
        return NonFiniteLoss(step, loss, grad_norm, examples)

    def due(self, every: int) -> bool:
        return self.counters.step % every == 0

    def end_reached(self) -> Stop | None:
        if self.config.flops_budget is not None and self.counters.flops >= self.config.flops_budget:
            return "flops"
        if self.config.steps is not None and self.counters.step >= self.config.steps:
            return "steps"
        return None

    def out_of_patience(self) -> Stop | None:
        patience = self.config.patience
        out = patience is not None and self.counters.bad_validations >= patience
        return "patience" if out else None

    def measured(self, validate: Validate) -> dict[str, float]:
        """Validates in evaluation mode; every rank gets rank 0's numbers: all stop alike."""
        self.model.eval()
        with torch.no_grad():
            metrics = validate(self.model)
        device = self.parameters[0].device
        return of_rank_zero(metrics, world_size=self.world_size, device=device)

    def log_train(self, report: Report | None, *, last: bool) -> None:
        if not (last or self.due(self.config.log_every)):
            return
        self._append("train", means(self.counters.sums), report)
        self.counters.sums = {}

    def log_validation(self, metrics: dict[str, float], report: Report | None) -> None:
        counters, loss = self.counters, metrics["loss"]
        if counters.best_loss is None or loss < counters.best_loss:
            counters.best_step, counters.best_loss = counters.step, loss
            counters.bad_validations = 0
            self.state.keep_best()
        else:
            counters.bad_validations += 1
        self._append("validation", metrics, report)

    def _append(
        self,
        split: Literal["train", "validation"],
        metrics: dict[str, float],
        report: Report | None,
    ) -> None:
        counters = self.counters
        row = LogRow(
            step=counters.step,
            split=split,
            metrics=metrics,
            tokens=counters.tokens,
            flops=counters.flops,
            learning_rate=counters.learning_rate,
            grad_norm=counters.grad_norm,
            seconds=counters.seconds,
        )
        self.state.log.append(row)
        if report is not None and self.rank == 0:
            report(row)

    def finish(self, bare: nn.Module) -> FitResult:
        best_path = self.state.restore_best(bare)
        bare.eval()
        counters = self.counters
        return FitResult(
            best_step=counters.best_step,
            best_loss=counters.best_loss,
            best_path=best_path,
            steps=counters.step,
            flops=counters.flops,
            tokens=counters.tokens,
            stopped=counters.stopped or "steps",
            log=tuple(self.state.log),
        )
