"""What a task logs, added up over micro-batches, ranks and steps, and the means that it comes to.

A mean over steps of a number that some steps lack (the loss of contexts where K = 0) or measure on
few labels would be wrong. So a number may be a pair: a sum, and how many things were summed. Pairs
are added; the mean is one division at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

Tally = tuple[float, float]
"""A sum, and the number of things summed; (0, 0) where there was none."""
Metric = float | Tally
"""What a task says of one batch: a number of the batch, or a tally."""


def as_tallies(metrics: Mapping[str, Metric], *, share: float = 1.0) -> dict[str, Tally]:
    """Numbers as tallies: one alone counts as one thing.

    Args:
        metrics: of one batch.
        share: of a step that the batch is, as one of several ranks' or micro-batches: a number
            alone then counts as much of one thing, so that every step counts as one.
    """
    return {
        name: metric if isinstance(metric, tuple) else (share * float(metric), share)
        for name, metric in metrics.items()
    }


def added(one: Mapping[str, Tally], other: Mapping[str, Tally]) -> dict[str, Tally]:
    """Sums and numbers of both, by name; a name that one lacks comes from the other."""
    total = dict(one)
    for name, (value, number) in other.items():
        before, seen = total.get(name, (0.0, 0.0))
        total[name] = (before + value, seen + number)
    return total


def means(tallies: Mapping[str, Tally]) -> dict[str, float]:
    """The mean of each; what never occurred is left out."""
    return {name: value / number for name, (value, number) in tallies.items() if number}
