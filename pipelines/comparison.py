"""Two score tables side by side: whose value is better, and whether the intervals lie apart.

Values of single examples are not stored, so each interval is its own table's (marginal). Intervals
that lie apart tell the two apart; intervals that overlap do not show that there is no difference,
since what makes an example hard for both does not cancel. Comparisons in pairs stand in the tables
themselves (`perplexity_ratio`, `kid_difference`, ...): against the baseline of the same run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from pipelines.errors import UsageError
from pipelines.runtime.catalog import find_manifest, manifests, read_ref
from pipelines.runtime.context import artifacts_of_run
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import Store
from storage_schemas.manifest import Manifest
from storage_schemas.tables import TABLES

__all__ = [
    "Compared",
    "Side",
    "compare_scores",
    "find_side",
    "only_on_one_side",
    "score_rows",
    "scores_of_generator",
]

Row = Mapping[str, Any]
Verdict = Literal["better", "worse", "equal", ""]
_KEY = TABLES["scores"].key
_SHORTEST = 6
"""Digits of an id that are enough."""
_SHOWN = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One score table, or the rows of one generator in it."""

    title: str
    manifest: Manifest
    rows: tuple[Row, ...]
    model: str | None = None
    """Name of the only generator whose rows these are; None: all rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One measurement on both sides."""

    a: Row
    b: Row
    difference: float
    """b - a."""
    ratio: float | None
    """b / a; None where a is not above 0 or b is below 0."""
    apart: bool | None
    """Whether the intervals lie apart; None where a side has none."""
    verdict: Verdict
    """How b stands to a by value; empty where neither way is an improvement."""


def compare_scores(a: Side, b: Side) -> list[Compared]:
    """Rows that both sides have, in the order of a.

    Rows are the same measurement if their keys agree: metric, model, task, set, group, k and
    memory. Between two generators the model's name is left out.
    """
    other = {_key(row, a, b): row for row in b.rows}
    found = []
    for row in a.rows:
        match = other.get(_key(row, a, b))
        if match is not None:
            found.append(_compared(row, match))
    return found


def only_on_one_side(a: Side, b: Side) -> tuple[int, int]:
    """Number of rows that only a has, and that only b has."""
    left, right = ({_key(row, a, b) for row in side.rows} for side in (a, b))
    return len(left - right), len(right - left)


def _key(row: Row, a: Side, b: Side) -> tuple[Any, ...]:
    two_generators = a.model is not None and b.model is not None
    return tuple(row[name] for name in _KEY if name != "model" or not two_generators)


def _compared(a: Row, b: Row) -> Compared:
    first, second = float(a["value"]), float(b["value"])
    ends = (a["low"], a["high"], b["low"], b["high"])
    known = all(end is not None for end in ends)
    verdict: Verdict = ""
    if a["better"] is not None:
        up = (second > first) == (a["better"] == "higher")
        verdict = "equal" if first == second else "better" if up else "worse"
    return Compared(
        a=a,
        b=b,
        difference=second - first,
        ratio=second / first if first > 0 and second >= 0 else None,
        apart=bool(a["high"] < b["low"] or b["high"] < a["low"]) if known else None,
        verdict=verdict,
    )


# --- finding the tables ---------------------------------------------------------------------


def find_side(store: Store, name: str) -> Side:
    """A score table by namespace, run, or artifact; a generator's part of the newest one it is in.

    Args:
        store: where it is.
        name: a namespace (its newest scores), a run id, or the id of a `scores` or `generator`
            artifact; of ids the first 6 digits are enough.

    Raises:
        UsageError: when nothing is called so, several things are, or it has no scores.
    """
    namespaces = sorted({key.split("/")[1] for key in store.list("_refs")})
    if name in namespaces:
        found = read_ref(store, name, "scores")
        if found is None:
            raise UsageError(f"compare: {name} has no scores yet; run the flow evaluate first")
        return _side(store, name, found)
    runs = sorted({key.split("/")[1] for key in store.list("_runs")})
    held = [m for kind in ("scores", "generator") for m in manifests(store, kind)]
    kind, _, digits = name.rpartition("/")
    hits: list[str | Manifest] = [] if kind else [r for r in runs if r.startswith(name)]
    hits += [m for m in held if m.artifact_id.startswith(digits) and kind in ("", m.kind)]
    if len(digits) < _SHORTEST or len(hits) != 1:
        names = [*namespaces, *runs, *(m.artifact_id[:_SHOWN] for m in held)]
        raise UsageError(_unknown(name, len(hits) if len(digits) >= _SHORTEST else 0, names))
    if isinstance(hits[0], str):
        return _of_run(store, hits[0])
    if hits[0].kind == "scores":
        return _side(store, f"scores {hits[0].artifact_id[:_SHOWN]}", hits[0])
    return _of_generator(store, hits[0])


def score_rows(store: Store, manifest: Manifest) -> tuple[Row, ...]:
    """Rows of a `scores` artifact.

    Raises:
        UsageError: when an earlier version wrote it, whose columns were others.
    """
    if manifest.schema_version != TABLES["scores"].version:
        raise UsageError(
            f"scores {manifest.artifact_id[:_SHOWN]}: was written as version "
            f"{manifest.schema_version} of the score table, which is now version "
            f"{TABLES['scores'].version}; evaluate again"
        )
    rows: list[Row] = Reader(store).tables(manifest.tables("scores")).to_pylist()
    return tuple(rows)


def scores_of_generator(store: Store, generator: str) -> list[tuple[Manifest, str]]:
    """Score tables that a generator is in, the newest first, and what it is called there.

    Args:
        store: where they are.
        generator: its artifact id.
    """
    found = [
        (manifest, one.name.removeprefix("generator."))
        for manifest in manifests(store, "scores")
        for one in manifest.inputs
        if one.artifact_id == generator and one.name.startswith("generator.")
    ]
    return sorted(found, key=lambda pair: (pair[0].created_at, pair[0].artifact_id), reverse=True)


def _of_run(store: Store, run_id: str) -> Side:
    scores = artifacts_of_run(store, run_id).get("score_generations")
    found = None if scores is None else find_manifest(store, "scores", scores)
    if found is None:
        raise UsageError(f"compare: run {run_id} has no scores; name a run that evaluated")
    return _side(store, f"run {run_id[:_SHOWN]}", found)


def _of_generator(store: Store, generator: Manifest) -> Side:
    found = scores_of_generator(store, generator.artifact_id)
    if not found:
        raise UsageError(
            f"compare: generator {generator.artifact_id[:_SHOWN]} was never scored; run the flow "
            "evaluate with --artifact"
        )
    manifest, model = found[0]
    rows = tuple(row for row in score_rows(store, manifest) if row["model"] == model)
    title = f"{model} {generator.artifact_id[:_SHOWN]}"
    return Side(title=title, manifest=manifest, rows=rows, model=model)


def _side(store: Store, title: str, manifest: Manifest) -> Side:
    return Side(title=title, manifest=manifest, rows=score_rows(store, manifest))


def _unknown(name: str, hits: int, names: Sequence[str]) -> str:
    if hits:
        return f"compare: {hits} things have an id that starts with {name}; give more digits"
    near = get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names[:6])}"
    return (
        f"compare: nothing that has scores is called {name}; {hint} (a namespace, a run id, or the "
        "id of a scores or generator artifact; racm3 status lists them)"
    )
