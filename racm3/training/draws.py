"""What was drawn for a step: enough to say what the generator saw, and to check it."""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass, field, replace
from typing import Literal

from racm3.objective.spans import SpanDraw
from racm3.sequence.batch import digest_of_ids

Query = Literal["text", "image"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRecord:
    """What was drawn for one row."""

    example_id: str
    epoch: int
    query: Query | None
    """None where nothing was retrieved: no contexts were asked for, the example has no query, or
    the row is an episode (`racm3.training.episodes`), which has contexts nevertheless."""

    draw: int | None
    context_ids: tuple[str, ...]
    """In the order fed."""

    contexts_left_out: int
    """Contexts that did not fit `max_length`."""

    cut_text_tokens: int
    """Caption tokens lost to `max_text_tokens`."""

    masking: SpanDraw

    ids_read: bytes = field(repr=False)
    """Token ids as they are read: int64, little-endian."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawRecord:
    """What was drawn for one step and rank, or for a part of its rows."""

    seed: int
    step: int
    rank: int
    world_size: int
    rows: tuple[RowRecord, ...]

    @property
    def batch_digest(self) -> str:
        """sha256 (hex) of the ids read (`digest_of_ids`)."""
        return digest_of_ids(row.ids_read for row in self.rows)


def whole_step(ranks: Series[Series[DrawRecord]]) -> DrawRecord:
    """What one rank alone would have drawn in one part.

    Args:
        ranks: the records of each rank, in the order of ranks, and of each in the order of parts.

    Raises:
        ValueError: when the ranks had unequally many rows.
    """
    rows = ([row for record in records for row in record.rows] for records in ranks)
    dealt = tuple(row for turn in zip(*rows, strict=True) for row in turn)
    return replace(ranks[0][0], rank=0, world_size=1, rows=dealt)
