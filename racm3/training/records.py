"""What `racm3.training.fit` takes and returns: its configuration, its task, its log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from racm3.training.tallies import Metric

Stop = Literal["steps", "flops", "patience"]
_NAMED = 64
"""Examples that an error names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How long and how fast to fit."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    steps: int | None = None
    """Largest number of steps; `None` = as many as `flops_budget` pays for."""
    flops_budget: float | None = None
    """Stop at the first step at or over this many FLOPs, summed over ranks; `None` = no budget."""
    learning_rate: float = 1e-3
    """Peak, reached after the warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 0."""
    final_lr_fraction: float = 0.0
    """Learning rate at the end of the decay, as a fraction of the peak, in [0, 1]."""
    weight_decay: float = 0.1
    """Decoupled, on parameters of two or more dimensions only."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    accumulate: int = 1
    """Micro-batches that a rank's share of a step is read in: less memory, the same gradient."""
    seed: int = 0
    """Seeds dropout; the task seeds its own batches."""
    validate_every: int = 100
    """Steps between validations; there is always one at the end."""
    checkpoint_every: int = 100
    """Steps between checkpoints; there is always one at the end."""
    log_every: int = 10
    """Steps that one train row of the log averages."""
    patience: int | None = None
    """Stop after this many validations without a lower loss; `None` = never."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept, so that a torn one has one before it; >= 1."""

    def __post_init__(self) -> None:
        """Refuses what cannot be run.

        Raises:
            ValueError: A number is out of range, or neither `steps` nor `flops_budget` is given.
        """
        if self.steps is None and self.flops_budget is None:
            raise ValueError("FitConfig needs steps or flops_budget: without one it never ends.")
        positive = {
            name: getattr(self, name)
            for name in (
                *("steps", "flops_budget", "learning_rate", "clip", "validate_every"),
                *("checkpoint_every", "log_every", "patience", "keep_checkpoints", "accumulate"),
            )
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise ValueError(f"FitConfig.{name} is {value!r}, but must be greater than 0.")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"FitConfig.{name} is {getattr(self, name)!r}, but must be >= 0.")
        for name, value in (("betas[0]", self.betas[0]), ("betas[1]", self.betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"FitConfig.{name} is {value!r}, but must be in [0, 1).")
        if not 0 <= self.final_lr_fraction <= 1:
            raise ValueError("FitConfig.final_lr_fraction must be in [0, 1].")

    def progress(self, *, step: int, flops: float) -> float:
        """Returns how much of the run is done, in [0, 1]."""
        if self.flops_budget is not None:
            return min(1.0, flops / self.flops_budget)
        return min(1.0, step / (self.steps or 1))

    def learning_rate_at(self, *, step: int, flops: float) -> float:
        """Returns the learning rate of the step about to be taken.

        Args:
            step: Steps done before it.
            flops: FLOPs done before it.
        """
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = 1.0 - self.progress(step=step, flops=flops)
        return (
            self.learning_rate
            * warmup
            * (self.final_lr_fraction + (1.0 - self.final_lr_fraction) * left)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LogRow:
    """One row of a training log."""

    step: int
    """Steps done."""
    split: Literal["train", "validation"]
    """Train rows average the steps since the row before; validation rows are one measurement."""
    metrics: dict[str, float]
    """What the task or the validation returned, by name; means of nothing are left out."""
    tokens: float
    """Tokens read since the start, over all ranks (0 where the task reports none)."""
    flops: float
    """Training FLOPs since the start, over all ranks."""
    learning_rate: float
    """Of the last step."""
    grad_norm: float
    """Of the last step, before clipping."""
    seconds: float
    """Time in `fit` since the start, interruptions left out. Differs between equal runs."""


class FitTask(Protocol):
    """What is fitted: a model and its loss on the batch of a step."""

    model: nn.Module
    """Exchanged for its wrapped self while `fit` runs: call it through this attribute."""

    def loss(self, step: int, *, rank: int, world_size: int) -> tuple[Tensor, Mapping[str, Metric]]:
        """Returns the scalar loss of a batch, a pure function of (step, rank), and what to log.

        Gradients are averaged over ranks. The names must be the same on every rank. The number
        called ``tokens`` is summed into `LogRow.tokens` instead of being averaged.

        Where the examples that all ranks read together depend on the step alone, a run may go on
        with another number of ranks.
        """

    def step_flops(self, step: int) -> float:
        """Returns the FLOPs of this rank's step, forward and backward; asked after `loss`."""


@runtime_checkable
class HasMicroBatches(Protocol):
    """A task whose batch can be read in parts: what `FitConfig.accumulate` needs."""

    def micro_losses(
        self, step: int, *, rank: int, world_size: int, parts: int
    ) -> Iterator[tuple[Tensor, Mapping[str, Metric]]]:
        """Yields `parts` losses, which add up to that of `FitTask.loss`, and what to log of each.

        Of what is logged, numbers are averaged over the parts (``tokens`` is summed), and tallies
        are added up. The backward pass of each part is done before the next is asked for.
        """


@dataclass(frozen=True, slots=True)
class StepExamples:
    """What all ranks together read in one step."""

    batch_digest: str
    """sha256 (hex) of the ids read."""
    example_ids: tuple[str, ...]
    """One a row."""


@runtime_checkable
class HasExamples(Protocol):
    """A task that can tell what a step read."""

    def examples_of(self, step: int) -> StepExamples:
        """Draws the step's batch again, of all ranks."""


class NonFiniteLoss(FloatingPointError):
    """The loss or the gradient of a step is not finite; every rank raises it, none took the step.

    The newest checkpoint is from before the step.
    """

    def __init__(
        self, step: int, loss: float, grad_norm: float, examples: StepExamples | None = None
    ) -> None:
        """Takes the number of the step (from 0), its loss, its norm, and what it read."""
        super().__init__(step, loss, grad_norm, examples)
        self.step, self.loss, self.grad_norm, self.examples = step, loss, grad_norm, examples

    def __str__(self) -> str:
        """One sentence."""
        text = f"step {self.step} has a loss of {self.loss} and a gradient of norm {self.grad_norm}"
        if self.examples is not None:
            ids = self.examples.example_ids
            more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
            text += f" on batch {self.examples.batch_digest}"
            text += f", examples {', '.join(ids[:_NAMED])}{more}"
        return f"{text}: lower learning_rate, lengthen warmup_steps, or look at the examples"


@runtime_checkable
class HasAfterStep(Protocol):
    """A task that changes something after each optimiser step (codebooks by moving average)."""

    def after_step(self, step: int) -> None:
        """Called with the number of the step just taken, without gradients."""


@runtime_checkable
class HasState(Protocol):
    """A task with tensors of its own outside its model."""

    def state_dict(self) -> dict[str, Tensor]:
        """Returns them by name."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes them back."""


@runtime_checkable
class HasParameterGroups(Protocol):
    """A task that decides what is trained and what decays."""

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Returns AdamW's groups; ``lr_scale`` (default 1) multiplies the learning rate of one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """What a run came to. The task's model carries the best weights."""

    best_step: int
    """Steps done at the lowest validation loss; the last step without validation."""
    best_loss: float | None
    """That loss; `None` without validation."""
    best_path: Path | None
    """Verified folder of the best weights (part ``model``); `None` without a checkpoint folder."""
    steps: int
    """Steps done."""
    flops: float
    """FLOPs done, over all ranks."""
    tokens: float
    """Tokens read, over all ranks."""
    stopped: Stop
    """What ended the run."""
    log: tuple[LogRow, ...]
    """Every row, those before an interruption too."""
