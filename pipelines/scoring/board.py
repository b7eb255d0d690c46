"""The score table while it is filled, and the slices of evaluation examples that have rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from racm3.metrics.score import Score
from storage_schemas.tables import TABLES

__all__ = ["PLACE_COLUMNS", "Board", "Place", "Slice", "place_of", "slices_of"]

SMALLEST_GROUP = 5
"""Groups with fewer documents get no rows of their own."""
REST = "rest"
"""The documents of a set that are in no group with rows of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where an evaluation document belongs."""

    document_id: str
    set: str
    group: str
    cluster: str
    """What the bootstrap resamples: the concept, or the document where it has none."""


PLACE_COLUMNS = ["document_id", "set", "group", "concept"]
"""Columns of `examples` that say where a document belongs."""


def place_of(row: Mapping[str, Any]) -> Place:
    """Of a row with `PLACE_COLUMNS`."""
    return Place(
        document_id=row["document_id"],
        set=row["set"] or "",
        group=row["group"] or "",
        cluster=row["concept"] or row["document_id"],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Documents that share rows of the score table."""

    set: str
    group: str
    """Empty: the whole set."""
    index: NDArray[np.int64]


def slices_of(places: Sequence[Place]) -> list[Slice]:
    """Each set whole, each of its larger groups, and what is in none of these groups."""
    slices = []
    for name in sorted({place.set for place in places}):
        members = np.array([i for i, p in enumerate(places) if p.set == name])
        slices.append(Slice(set=name, group="", index=members))
        groups = np.array([places[i].group for i in members])
        large = [g for g in sorted(set(groups)) if g and (groups == g).sum() >= SMALLEST_GROUP]
        slices += [Slice(set=name, group=g, index=members[groups == g]) for g in large]
        rest = members[~np.isin(groups, large)]
        if large and len(rest):
            slices.append(Slice(set=name, group=REST, index=rest))
    return slices


class Board:
    """Rows of the score table; a row that is there already is the same measurement."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Any, ...], dict[str, Any]] = {}

    def add(
        self,
        score: Score,
        *,
        model: str,
        task: str,
        where: Slice,
        k: int = 0,
        memory: str = "",
    ) -> None:
        """Adds one measurement; infinite values are refused by the table, so they say nothing."""
        if not np.isfinite(score.value):
            return
        row = {
            "metric": score.name,
            "model": model,
            "task": task,
            "set": where.set,
            "group": where.group,
            "k": k,
            "memory": memory,
            "value": score.value,
            "n": score.n,
            "unit": score.unit,
            "low": score.low,
            "high": score.high,
            "better": "higher" if score.higher_is_better else "lower",
            "reference": score.reference,
            "protocol": score.protocol,
        }
        key = tuple(row[name] for name in TABLES["scores"].key)
        self._rows.setdefault(key, row)

    def table(self) -> pa.Table:
        """All rows."""
        return pa.Table.from_pylist(list(self._rows.values()), schema=TABLES["scores"].arrow)
