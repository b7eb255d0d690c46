"""A number that can be compared: what it is, of how many, how certain, against what."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One measured value and all that is needed to read it."""

    name: str
    """Of the metric, in lower case: ``kid``, ``image_perplexity``."""
    value: float
    """The number, in `unit`."""
    unit: str
    """``dB``, ``nats``, ``ratio``, ...; empty where it has none."""
    higher_is_better: bool
    """Direction of improvement."""
    n: int
    """Items that were measured, >= 0."""
    low: float | None = None
    """Lower end of the 95 % interval; `None` where there is no interval."""
    high: float | None = None
    """Upper end; `None` exactly where `low` is."""
    reference: str | None = None
    """A published number for the same metric, with its source; `None` where there is none."""
    protocol: str = ""
    """How it was measured, in one sentence."""

    def __post_init__(self) -> None:
        """Refuses records that cannot be read.

        Raises:
            ValueError: There is no name, a negative `n`, half an interval, or one that is reversed.
        """
        if not self.name:
            raise ValueError("A Score needs a name.")
        if self.n < 0:
            raise ValueError(f"Score {self.name}: n is {self.n}, but must be >= 0.")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"Score {self.name}: give both ends of the interval or none.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(
                f"Score {self.name}: the interval {self.low}..{self.high} is reversed."
            )


def mean_score(
    values: list[float],
    *,
    name: str,
    unit: str,
    higher_is_better: bool,
    protocol: str,
    reference: str | None = None,
) -> Score:
    """Makes a score of per-item values: their mean, +- 1.96 standard errors.

    Args:
        values: One number an item; at least one.
        name: See `Score`.
        unit: See `Score`.
        higher_is_better: See `Score`.
        protocol: See `Score`.
        reference: See `Score`.

    Returns:
        The score; without interval when there is only one item.

    Raises:
        ValueError: There are no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError(f"Score {name}: there is nothing to average.")
    mean = math.fsum(values) / n
    low = high = None
    if n > 1:
        variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
        half = 1.96 * math.sqrt(variance / n)
        low, high = mean - half, mean + half
    return Score(
        name=name,
        value=mean,
        unit=unit,
        higher_is_better=higher_is_better,
        n=n,
        low=low,
        high=high,
        reference=reference,
        protocol=protocol,
    )


def share_score(shares: list[float], *, name: str, higher_is_better: bool, protocol: str) -> Score:
    """Makes a score of per-item shares: their mean, with Wilson's interval.

    Unlike `mean_score`'s it stays within [0, 1] and has a width where all items agree. For shares
    between 0 and 1 it is too wide, never too narrow: no values of this mean vary more than 0 and 1.

    Args:
        shares: One an item, in [0, 1]; at least one.
        name: See `Score`.
        higher_is_better: See `Score`.
        protocol: See `Score`.

    Raises:
        ValueError: There are no shares, or one is out of range.
    """
    n = len(shares)
    if n == 0:
        raise ValueError(f"Score {name}: there is nothing to average.")
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"Score {name}: a share is out of [0, 1].")
    mean, z = math.fsum(shares) / n, 1.96
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(mean * (1 - mean) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return Score(
        name=name,
        value=mean,
        unit="fraction",
        higher_is_better=higher_is_better,
        n=n,
        low=min(mean, max(0.0, centre - half)),
        high=max(mean, min(1.0, centre + half)),
        protocol=protocol,
    )
