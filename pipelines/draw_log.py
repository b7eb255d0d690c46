"""What each step of a training was shown, kept on disk beside its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from racm3.training.draws import DrawRecord
from storage_schemas.tables import TABLES

__all__ = ["DrawLog"]


class DrawLog:
    """Step, contexts and digest of each batch, so that a resumed run can tell the whole story."""

    def __init__(self, path: Path, *, active: bool) -> None:
        """Takes the file, new or of an earlier try; `active`: this process writes to it."""
        self._path, self._active = path, active

    def add(self, record: DrawRecord) -> None:
        """Notes one step; a step that is done again after a kill is noted again, equal."""
        if self._active:
            k = max((len(row.context_ids) for row in record.rows), default=0)
            line = json.dumps([record.step, k, record.batch_digest])
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def table(self, steps: int) -> pa.Table:
        """The steps that count, each once."""
        rows = {step: (k, digest) for step, k, digest in self._lines() if step < steps}
        return pa.table(
            {
                "step": pa.array(list(rows), pa.int64()),
                "k": pa.array([k for k, _ in rows.values()], pa.int32()),
                "batch_digest": pa.array([digest for _, digest in rows.values()], pa.string()),
            },
            schema=TABLES["training_batches"].arrow,
        )

    def _lines(self) -> Iterable[tuple[int, int, str]]:
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                step, k, digest = json.loads(line)
            except ValueError:
                continue  # torn by a kill; that step was done again and noted again
            yield step, k, digest
