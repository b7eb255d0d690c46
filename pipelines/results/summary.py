"""Rows of several seeds summed up: the mean, the spread, and what every seed by itself says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from pipelines.results.rows import Row

__all__ = ["Cell", "One", "Results", "Where", "only"]

Z = 1.96
"""Standard errors of a 95 % interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """Which rows: all but the seed."""

    metric: str
    model: str
    variant: str = "main"
    task: str = "image"
    set: str = ""
    group: str = ""
    k: int | None = None
    """None: whatever there is; more than one is an error."""
    memory: str | None = None
    """None: as `k`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class One:
    """What one seed says."""

    seed: int
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A number over seeds."""

    ones: tuple[One, ...]
    unit: str
    protocol: str
    share: bool = False
    """Whether it lies between 0 and 1, as the gain of a share does not."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return math.fsum(one.value for one in self.ones) / len(self.ones)

    @property
    def spread(self) -> tuple[float, float]:
        """Lowest and highest seed."""
        values = [one.value for one in self.ones]
        return min(values), max(values)

    @property
    def n(self) -> int:
        """Of all seeds together."""
        return sum(one.n for one in self.ones)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean over seeds; None where a seed has none.

        Half-widths of the seeds' own intervals add up as those of independent numbers do, root of
        the sum of squares, over their number. They know nothing of how much training differs from
        seed to seed, so neither half is less than 1.96 standard errors of the mean over seeds.
        The interval of a share ends at 0 and at 1.
        """
        count, mean = len(self.ones), self.mean
        if any(one.low is None or one.high is None for one in self.ones):
            return None
        ends = [
            (one.value - float(one.low or 0), float(one.high or 0) - one.value) for one in self.ones
        ]
        scatter = 0.0
        if count > 1:
            square = math.fsum((one.value - mean) ** 2 for one in self.ones) / (count - 1)
            scatter = Z * math.sqrt(square / count)
        below, above = (max(scatter, math.hypot(*half) / count) for half in zip(*ends, strict=True))
        low, high = mean - below, mean + above
        return (max(low, 0.0), min(high, 1.0)) if self.share else (low, high)

    def surely_below(self, other: Cell) -> bool:
        """Whether the interval of the mean ends below the other's, and on no seed it is above."""
        ours, theirs = self.interval, other.interval
        if ours is None or theirs is None or not ours[1] < theirs[0]:
            return False
        return not other.below(self)[0]

    def surely(self, value: float, *, above: bool) -> bool:
        """Whether the interval of the mean is above (or below) a value, and no seed's beyond it.

        That every seed be on the same side would ask more, the more seeds there are: what is true
        of all would be refused in the end, by whichever was measured with the largest error.
        """
        ends = self.interval
        if ends is None or not (ends[0] > value if above else ends[1] < value):
            return False
        return not self.excludes(value, above=not above)[0]

    def below(self, other: Cell) -> tuple[int, int]:
        """On how many of the common seeds the interval ends below where the other's begins."""
        theirs = {one.seed: one for one in other.ones}
        common = [(one, theirs[one.seed]) for one in self.ones if one.seed in theirs]
        apart = sum(a.high is not None and b.low is not None and a.high < b.low for a, b in common)
        return apart, len(common)

    def excludes(self, value: float, *, above: bool) -> tuple[int, int]:
        """On how many seeds the whole interval is above (or below) a value."""
        ends = [one.low if above else one.high for one in self.ones]
        apart = sum(end is not None and (end > value if above else end < value) for end in ends)
        return apart, len(ends)


def only(cell: Cell | None, seeds: Set[int]) -> Cell | None:
    """The cell on some of its seeds; None where it has none of them."""
    if cell is None:
        return None
    ones = tuple(one for one in cell.ones if one.seed in seeds)
    return replace(cell, ones=ones) if ones else None


class Results:
    """All rows, by what they measure."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._cells: dict[tuple[Any, ...], dict[tuple[int, str], list[Row]]] = {}
        self.seeds: tuple[int, ...] = ()
        self.variants: tuple[str, ...] = ()
        self.artifacts: dict[tuple[str, int], str] = {}
        for row in rows:
            key = tuple(row[name] for name in _NAMES)
            self._cells.setdefault(key, {}).setdefault((row["k"], row["memory"]), []).append(row)
            self.artifacts[row["variant"], row["seed"]] = row["artifact"]
        self.seeds = tuple(sorted({seed for _, seed in self.artifacts}))
        self.variants = tuple(sorted({variant for variant, _ in self.artifacts}))

    def cell(self, where: Where, **changes: Any) -> Cell | None:
        """The number that stands there; None: it was not measured.

        Raises:
            ValueError: more than one number fits.
        """
        asked = replace(where, **changes)
        under = self._cells.get(tuple(getattr(asked, name) for name in _NAMES), {})
        found = [
            rows
            for (k, memory), rows in under.items()
            if asked.k in (None, k) and asked.memory in (None, memory)
        ]
        if len(found) > 1:
            raise ValueError(f"{asked} is said of {len(found)} numbers: name k and memory")
        return _cell(found[0], signed=asked.metric.endswith(_SIGNED)) if found else None

    def slices(self, variant: str = "main") -> list[tuple[str, str]]:
        """(set, group) of a variant that have numbers."""
        found = {(key[_SET], key[_SET + 1]) for key in self._cells if key[0] == variant}
        return sorted(pair for pair in found if pair[0])

    def reads_contexts(self, variant: str, model: str) -> bool:
        """Whether a generator's perplexity was measured with contexts that were retrieved."""
        asked = (variant, "image_perplexity", model)
        return any(
            key[: len(asked)] == asked and any(k > 0 for k, _ in under)
            for key, under in self._cells.items()
        )

    def models(self, variant: str = "main") -> list[str]:
        """Whatever has numbers in a variant."""
        return sorted({key[2] for key in self._cells if key[0] == variant})

    def seeds_of(self, variants: Iterable[str]) -> tuple[int, ...]:
        """Splits that every one of some variants has; none where there are no variants."""
        having = [{seed for own, seed in self.artifacts if own == name} for name in variants]
        return tuple(sorted(set.intersection(*having))) if having else ()


_NAMES = ("variant", "metric", "model", "task", "set", "group")
_SET = _NAMES.index("set")


_SIGNED = ("gain", "difference")
"""How metrics end that say how much more something is."""


def _cell(rows: Sequence[Mapping[str, Any]], *, signed: bool) -> Cell:
    ordered = sorted(rows, key=lambda row: row["seed"])
    ones = tuple(
        One(seed=row["seed"], value=row["value"], low=row["low"], high=row["high"], n=row["n"])
        for row in ordered
    )
    unit = ordered[0]["unit"]
    return Cell(
        ones=ones,
        unit=unit,
        protocol=ordered[0]["protocol"],
        share=unit == "fraction" and not signed,
    )
