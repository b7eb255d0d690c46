"""`racm3 compare`: two score tables side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.opening import used_store
from flows.cli.options import AsJson, StoreOption
from flows.cli.output import console, print_json, print_table

if TYPE_CHECKING:
    from pipelines.comparison import Compared, Side

__all__ = ["compare"]

_HELP = "Namespace, run, or scores or generator artifact (6 digits of an id are enough)."
_NOTE = (
    "Intervals are each table's own, since values of single examples are not stored: where they "
    "lie apart, the two differ; where they overlap, that shows nothing."
)
_COLUMNS = ("metric", "model", "memory", "K", "A", "B", "B - A", "B / A", "B is")


def compare(
    a: Annotated[str, typer.Argument(help=_HELP)],
    b: Annotated[str, typer.Argument(help=f"What is held against it. {_HELP}")],
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Compare the scores of two runs, or of two generators, row by row."""
    from pipelines.comparison import compare_scores, find_side, only_on_one_side

    opened = used_store(store)
    sides = find_side(opened, a), find_side(opened, b)
    rows = compare_scores(*sides)
    alone = only_on_one_side(*sides)
    if as_json:
        print_json(_document(sides, rows, alone))
    else:
        _print(sides, rows, alone)


def _document(
    sides: tuple[Side, Side], rows: Sequence[Compared], alone: tuple[int, int]
) -> dict[str, Any]:
    names = ("a", "b")
    return {
        name: {"title": side.title, "scores": side.manifest.artifact_id, "only_here": only}
        for name, side, only in zip(names, sides, alone, strict=True)
    } | {
        "note": _NOTE,
        "rows": [
            {key: row.a[key] for key in ("metric", "task", "set", "group", "unit", "better")}
            | {name: _half(one) for name, one in zip(names, (row.a, row.b), strict=True)}
            | {"difference": row.difference, "ratio": row.ratio}
            | {"intervals_apart": row.apart, "b_is": row.verdict or None}
            for row in rows
        ],
    }


def _half(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("model", "k", "memory", "value", "low", "high", "n")}


def _print(sides: tuple[Side, Side], rows: Sequence[Compared], alone: tuple[int, int]) -> None:
    shown: dict[tuple[str, str, str], list[Compared]] = {}
    for row in rows:
        if row.verdict != "equal":
            shown.setdefault((row.a["set"], row.a["group"], row.a["task"]), []).append(row)
    for (name, group, task), members in sorted(shown.items()):
        title = f"{name}{', ' + group if group else ''}: {task}" if name else "all documents"
        print_table(title, _COLUMNS, [_line(row) for row in members])
    out = console()
    for letter, side, only in zip("AB", sides, alone, strict=True):
        own = f"scores {side.manifest.artifact_id[:12]}"
        extra = f", {only} rows only here" if only else ""
        out.print(f"{letter}: {side.title} ({own}{extra})", soft_wrap=True)
    equal = sum(row.verdict == "equal" for row in rows)
    out.print(f"{len(rows)} rows are in both, {equal} of them are equal", soft_wrap=True)
    if shown:
        out.print(_NOTE, soft_wrap=True)


def _line(row: Compared) -> tuple[object, ...]:
    verdict: str = row.verdict or "-"
    if row.apart:
        verdict += ", apart"
    return (
        row.a["metric"],
        ", ".join(dict.fromkeys((row.a["model"], row.b["model"]))),
        row.a["memory"] or "-",
        row.a["k"],
        _value(row.a),
        _value(row.b),
        f"{row.difference:+.3g}",
        "-" if row.ratio is None else f"{row.ratio:.3f}",
        verdict,
    )


def _value(row: Mapping[str, Any]) -> str:
    interval = "" if row["low"] is None else f" ({row['low']:.3g} to {row['high']:.3g})"
    return f"{row['value']:.4g}{interval}"
