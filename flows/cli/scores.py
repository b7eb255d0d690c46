"""The most telling rows of the score table, for the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.cli.output import print_table
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import Store
from storage_schemas.manifest import Manifest

__all__ = ["print_scores", "telling_rows"]

_METRICS = (
    "perplexity_ratio",
    "nll_difference",
    "token_accuracy",
    "token_accuracy_ratio",
    "psnr",
    "fid",
    "kid",
    "kid_difference",
    "kid_ratio",
    "cmmd",
    "cmmd_difference",
    "cmmd_ratio",
    "clip_score",
    "cider",
    "cider_gain",
    "cider_gain_over_copy",
    "few_shot_accuracy",
    "few_shot_gain",
    "few_shot_channel_accuracy",
    "few_shot_channel_gain",
)
_COLUMNS = ("set", "group", "task", "metric", "model", "memory", "k", "value", "low", "high", "n")


def telling_rows(store: Store, scores: Manifest) -> list[dict[str, Any]]:
    """Rows of the metrics that compare models, by set, group, task and metric."""
    table = Reader(store).tables(scores.tables("scores"))
    rows = [row for row in table.to_pylist() if row["metric"] in _METRICS and row["set"]]
    rows.sort(key=lambda r: (r["set"], r["group"], r["task"] != "image", *_rank(r)))
    return [{name: row[name] for name in (*_COLUMNS, "unit", "reference")} for row in rows]


def print_scores(rows: Sequence[Mapping[str, Any]]) -> None:
    """One table a set, group and task."""
    shown: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        shown.setdefault((row["set"], row["group"], row["task"]), []).append(row)
    for (name, group, task), members in shown.items():
        title = f"{name}{', ' + group if group else ''}: {task}"
        print_table(
            title,
            ("metric", "model", "memory", "K", "value", "95 % interval", "n"),
            [
                (
                    row["metric"],
                    row["model"],
                    row["memory"] or "-",
                    row["k"],
                    f"{row['value']:.4g}",
                    _interval(row),
                    row["n"],
                )
                for row in members
            ],
        )


def _interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None or row["high"] is None:
        return "-"
    return f"{row['low']:.4g} to {row['high']:.4g}"


def _rank(row: Mapping[str, Any]) -> tuple[int, str, str, int]:
    return _METRICS.index(row["metric"]), row["model"], row["memory"] or "", row["k"]
