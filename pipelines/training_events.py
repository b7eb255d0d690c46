"""TensorBoard events of a fit, beside its training log: for watching, never part of an artifact.

They lie in `_runs/<run_id>/tensorboard/<label>/` and stay there when the fit has published;
`tensorboard --logdir <store>/_runs` shows them. A fit that another run resumes goes on there.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from racm3.training.records import LogRow

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

__all__ = ["TrainingEvents"]

_FLUSH_SECONDS = 5
_ALSO = ("learning_rate", "grad_norm", "tokens", "flops")
"""Of each train row, beside its metrics."""


class TrainingEvents:
    """Writes the rows of a training log as scalars called ``<split>/<metric>``, by step."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder; nothing is written before the first row."""
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, row: LogRow) -> None:
        """Writes one row; values that are not finite are left out.

        The first one that a process writes purges what an earlier process wrote for its step and
        after it: a fit that resumes reports again what came after its checkpoint, and nothing else.
        """
        if self._writer is None:
            self._writer = self._open(row.step)
        scalars = dict(row.metrics)
        if row.split == "train":
            scalars |= {name: getattr(row, name) for name in _ALSO}
        for name, value in scalars.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{row.split}/{name}", value, row.step)

    def _open(self, step: int) -> SummaryWriter:
        from tensorboardX import SummaryWriter

        return SummaryWriter(
            str(self._folder),
            purge_step=step,
            flush_secs=_FLUSH_SECONDS,
            filename_suffix=f".{time.time_ns()}",  # names have seconds only; read in their order
        )
