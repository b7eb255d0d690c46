"""Scores against training compute, and the share of it that reaches a given score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipelines.results.summary import Cell, Results, Where, only
from pipelines.study import MAIN

__all__ = ["Point", "Share", "compute_curve", "share_of_compute"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One budget of one model."""

    flops: float
    """Training FLOPs, contexts counted, mean over seeds."""
    score: Cell


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """How much of the other's compute reaches its final score."""

    value: float | None
    """In (0, ...); None: no budget that was tried reaches it."""
    note: str
    """What should be said beside it; may be empty."""


def compute_curve(
    results: Results,
    metric: str,
    model: str,
    *,
    budgets: Iterable[str],
    documents: str,
    k: int,
    memory: str,
    task: str = "image",
) -> list[Point]:
    """Points of one model on an evaluation set, by FLOPs: of `main` and the variants `budgets`.

    Over the splits that all of these variants have: splits differ more than budgets do.
    """
    variants = [MAIN, *(name for name in budgets if name in results.variants)]
    common = set(results.seeds_of(variants))
    points = []
    for variant in variants:
        where = Where(metric=metric, model=model, task=task, set=documents, k=k, memory=memory)
        spent = Where(metric="training_flops", model=model, task="")
        flops = only(results.cell(spent, variant=variant), common)
        score = only(results.cell(where, variant=variant), common)
        if flops is not None and score is not None:
            points.append(Point(flops=flops.mean, score=score))
    return sorted(points, key=lambda point: point.flops)


def share_of_compute(
    results: Results,
    metric: str,
    *,
    ours: str,
    other: str,
    budgets: Sequence[str],
    documents: str = "familiar",
) -> Share | None:
    """The least FLOPs at which ours is as good as the other at its largest budget, as a share.

    Lower is better. Between two budgets the score is taken to be linear in log FLOPs.
    """
    mine, theirs = (
        compute_curve(
            results, metric, model, budgets=budgets, documents=documents, k=k, memory=memory
        )
        for model, k, memory in ((ours, 2, "restricted"), (other, 0, ""))
    )
    if not mine or not theirs:
        return None
    goal, whole = theirs[-1].score.mean, theirs[-1].flops
    if mine[0].score.mean <= goal:
        return Share(value=mine[0].flops / whole, note=" or less: the smallest budget reaches it")
    for before, after in pairwise(mine):
        if after.score.mean <= goal:
            a, b = before.score.mean, after.score.mean
            part = (a - goal) / (a - b)
            log = math.log(before.flops) + part * math.log(after.flops / before.flops)
            return Share(value=math.exp(log) / whole, note="")
    return Share(value=None, note="")
