"""What can go wrong in a run, and the exit code that says so.

PipelineError              1  the run failed; what was published is unharmed, run again to go on
├── PoisonedShards         1  shards failed their retry budget; the others are done
├── TooFewSucceeded        1  a source's success rate is below the recipe's minimum
├── Diverged               1  a training's loss is not finite; its last checkpoint is kept
├── UsageError             2  the request itself is wrong: unknown key, missing file
├── FoundWrong             3  stored data is not what it should be
└── GateRefused            3  new generators are worse than the recipe's gate allows
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "Diverged",
    "FoundWrong",
    "GateRefused",
    "PipelineError",
    "PoisonedShards",
    "TooFewSucceeded",
    "UsageError",
]


class PipelineError(Exception):
    """Root; the message is one sentence: what, where, what to do."""

    exit_code: ClassVar[int] = 1


class PoisonedShards(PipelineError):
    """Shards that failed every try."""


class TooFewSucceeded(PipelineError):
    """A dead network publishes nothing."""


class Diverged(PipelineError):
    """The loss of a training is not finite; every process of its group says so."""


class UsageError(PipelineError):
    """The request is wrong."""

    exit_code: ClassVar[int] = 2


class FoundWrong(PipelineError):
    """A check found stored data altered or missing."""

    exit_code: ClassVar[int] = 3


class GateRefused(PipelineError):
    """What was made is whole, but worse than what it should replace."""

    exit_code: ClassVar[int] = 3
