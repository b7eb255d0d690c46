"""References move; those of generators, and of what was made with them, only through the gate.

Without a gate every reference follows what a flow made. With one, `retrain` leaves its generators
as candidates (`candidate.generator.<name>`), `evaluate` measures the candidates, and the references
of generators, generations, scores and report move if no row of the gate got worse by more than its
tolerance. They move together, so that a namespace's scores are those of its generators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field

from pipelines.comparison import score_rows, scores_of_generator
from pipelines.errors import GateRefused, UsageError
from pipelines.runtime.catalog import move_ref, read_ref
from pipelines.runtime.stage import StageConfig
from pipelines.runtime.store import Store
from storage_schemas.manifest import Manifest
from storage_schemas.tables import TABLES

__all__ = ["CANDIDATE", "GATED", "GateRow", "move_references", "newest", "worse_rows"]

CANDIDATE = "candidate."
"""Begins the name of the reference of a generator that has not passed the gate yet."""
GATED = frozenset({"generator", "generations", "scores", "report"})
"""Kinds whose references wait for the gate."""

Row = Mapping[str, Any]


class GateRow(StageConfig):
    """One row of the score table that must not get worse."""

    metric: str
    task: Literal["image", "caption"]
    set: str
    group: str = ""
    k: int = Field(ge=0, description="contexts")
    memory: str = Field("", description="name of the memory; empty where k = 0")
    model: str | None = Field(None, description="generator; none: every one that has the row")
    tolerance: float = Field(
        0.0, ge=0, description="share of the old value by which the new one may be worse"
    )

    def rows_of(self, rows: Sequence[Row]) -> dict[str, Row]:
        """The rows that are meant, by model."""
        names = [name for name in TABLES["scores"].key if name != "model"]
        return {
            row["model"]: row
            for row in rows
            if self.model in (None, row["model"])
            and all(row[name] == getattr(self, name) for name in names)
        }

    def __str__(self) -> str:
        """As a sentence names it."""
        where = f"{self.set}, {self.group}" if self.group else self.set
        return f"{self.metric} on {where} (K={self.k}{f', {self.memory}' if self.memory else ''})"


def newest(store: Store, namespace: str, name: str, gate: Sequence[GateRow]) -> Manifest | None:
    """What a flow continues from: the generator that waits at the gate, else what the name says."""
    candidate = read_ref(store, namespace, CANDIDATE + name) if gate else None
    return candidate or read_ref(store, namespace, name)


def move_references(
    store: Store,
    namespace: str,
    gate: Sequence[GateRow],
    made: Mapping[str, Manifest],
    known: Mapping[str, Manifest],
) -> None:
    """Points the references at what a flow made, as far as the gate lets them.

    Args:
        store: where they are.
        namespace: of the references.
        gate: rows that must not get worse; none: everything moves.
        made: what the flow's own steps made, by name of the reference.
        known: the same, with what the flow was given.

    Raises:
        GateRefused: when a row got worse; the other references have moved.
        UsageError: when the gate names a row that the score table does not have.
    """
    for name, manifest in made.items():
        if not (gate and manifest.kind in GATED):
            move_ref(store, namespace, name, manifest)
        waits = gate or read_ref(store, namespace, CANDIDATE + name) is not None
        if waits and manifest.kind == "generator":
            move_ref(store, namespace, CANDIDATE + name, manifest)
    if not gate or "scores" not in made:
        return
    waiting = {name: m for name, m in known.items() if _waits(store, namespace, name, m)}
    before = {
        name.removeprefix("generator."): _rows_before(store, namespace, name) for name in waiting
    }
    if worse := worse_rows(gate, score_rows(store, made["scores"]), before):
        where = ", ".join(CANDIDATE + name for name in sorted(waiting))
        raise GateRefused(
            f"gate: {'; '.join(worse)}; the references of generators, generations, scores and "
            f"report of {namespace} stay where they are, what was trained waits as {where}; see "
            f"both with: racm3 compare {namespace} {made['scores'].artifact_id[:12]}"
        )
    for name, manifest in (waiting | dict(made)).items():
        if manifest.kind in GATED:
            move_ref(store, namespace, name, manifest)


def worse_rows(
    gate: Sequence[GateRow], new: Sequence[Row], before: Mapping[str, Sequence[Row]]
) -> list[str]:
    """Says which rows of the gate got worse by more than their tolerance.

    Values are compared, not intervals: both tables measure much the same documents, so intervals
    that overlap would let almost everything through. A row without an old value passes.

    Args:
        gate: What must not get worse.
        new: The new score table.
        before: For each generator that would be replaced, the rows of the table it was scored in.

    Raises:
        UsageError: when the gate names a row that the new table lacks, or whose metric has no
            better direction.
    """
    said = []
    for asked in gate:
        rows = asked.rows_of(new)
        if not rows:
            raise UsageError(_lacking(asked, new))
        for model, row in rows.items():
            if row["better"] is None:
                raise UsageError(f"gate: neither way is an improvement of {row['metric']}")
            old = asked.rows_of(before.get(model, ())).get(model)
            if old is not None and _loss(row, old) > asked.tolerance * abs(old["value"]):
                said.append(
                    f"{asked} of {model} went from {old['value']:.4g} to {row['value']:.4g}, and "
                    f"{100 * asked.tolerance:g} % worse is allowed"
                )
    return said


def _loss(new: Row, old: Row) -> float:
    gain = float(new["value"]) - float(old["value"])
    return -gain if new["better"] == "higher" else gain


def _waits(store: Store, namespace: str, name: str, manifest: Manifest) -> bool:
    """Whether this is the candidate, and not what the reference names already."""
    if manifest.kind != "generator":
        return False
    candidate = read_ref(store, namespace, CANDIDATE + name)
    current = read_ref(store, namespace, name)
    same = candidate is not None and candidate.artifact_id == manifest.artifact_id
    return same and (current is None or current.artifact_id != manifest.artifact_id)


def _rows_before(store: Store, namespace: str, name: str) -> tuple[Row, ...]:
    """Of the generator that the reference names: in the namespace's scores, else in the newest.

    A generator that was never scored, or scored by an earlier version whose columns were others,
    has none.
    """
    current = read_ref(store, namespace, name)
    if current is None:
        return ()
    scores = read_ref(store, namespace, "scores")
    tables = [m for m, _ in scores_of_generator(store, current.artifact_id)]
    tables = [m for m in tables if m.schema_version == TABLES["scores"].version]
    first = [m for m in tables if scores is not None and m.artifact_id == scores.artifact_id]
    return score_rows(store, (first or tables)[0]) if tables else ()


def _lacking(asked: GateRow, rows: Sequence[Row]) -> str:
    """The sentence about a row that is not there, with the nearest that are."""
    model = asked.model or "any generator"
    same = [row for row in rows if row["metric"] == asked.metric]
    if not same:
        names = sorted({str(row["metric"]) for row in rows})
        near = get_close_matches(asked.metric, names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"metrics are {', '.join(names)}"
        return f"gate: the score table has no metric {asked.metric}; {hint}"
    there = sorted(
        {
            f"{row['model']} on {row['set']} (K={row['k']}, {row['memory'] or 'no memory'})"
            for row in same
            if not row["group"]
        }
    )
    return f"gate: the score table has no row {asked} of {model}; it has {', '.join(there[:6])}"
