"""Intervals by resampling clusters of items, and paired comparisons on the same draws.

Items of one group (all tones and genders of one person, say) are not independent: whole groups are
drawn with replacement. Intervals are percentile intervals. Two models that answered the same items
are compared draw by draw, so that what makes an item hard for both cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from racm3.metrics.score import Score

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resampling:
    """Which clusters each bootstrap draw takes, and how often; made by `resample`."""

    cluster: NDArray[np.int64]
    """Cluster of each item, 0..clusters-1, [n]."""
    times: NDArray[np.float64]
    """How often each draw takes each cluster, [resamples, clusters]; a row adds up to clusters."""

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return self.times.shape[1]

    @property
    def resamples(self) -> int:
        """Number of draws."""
        return self.times.shape[0]

    def sums(self, values: Values) -> Values:
        """Sum of per-item values [n] over the items of each draw, [resamples]."""
        totals = np.bincount(self.cluster, weights=values, minlength=self.clusters)
        return np.asarray(self.times @ totals, dtype=np.float64)

    def means(self, values: Values) -> Values:
        """Mean of per-item values [n] over the items of each draw, [resamples]."""
        return np.asarray(self.sums(values) / self.sums(np.ones(len(values))), dtype=np.float64)

    @property
    def said(self) -> str:
        """How, for a protocol."""
        return f"bootstrap over {self.clusters} concepts, {self.resamples} draws"


def resample(groups: Sequence[str], *, rng: np.random.Generator, resamples: int) -> Resampling:
    """Draws clusters with replacement.

    Args:
        groups: Cluster of each item, n >= 1 of them.
        rng: Draws the clusters.
        resamples: Draws, >= 1.

    Raises:
        ValueError: There are no items, or no draws are asked for.
    """
    if not len(groups) or resamples < 1:
        raise ValueError(
            f"a bootstrap needs items and draws, not {len(groups)} items and {resamples} draws."
        )
    names, cluster = np.unique(np.asarray(groups), return_inverse=True)
    drawn = rng.integers(len(names), size=(resamples, len(names)))
    offsets = len(names) * np.arange(resamples)[:, None]
    times = np.bincount((drawn + offsets).ravel(), minlength=resamples * len(names))
    return Resampling(
        cluster=cluster.astype(np.int64),
        times=times.reshape(resamples, len(names)).astype(np.float64),
    )


def percentiles(draws: Values, level: float = 0.95) -> tuple[float, float]:
    """The ends of the central interval of some draws that holds `level` of them."""
    tail = (1.0 - level) / 2.0
    low, high = (float(q) for q in np.quantile(draws, [tail, 1.0 - tail]))
    return low, high


def with_interval(score: Score, values: Values, resampling: Resampling) -> Score:
    """The same mean with a bootstrap interval over clusters in place of its own.

    Args:
        score: Of which `value` is the mean of `values`.
        values: One an item, [n].
        resampling: Of the same items.
    """
    low, high = percentiles(resampling.means(values))
    return replace(score, low=low, high=high, protocol=f"{score.protocol}; {resampling.said}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedComparison:
    """How model A does against model B on the same items."""

    ratio: float
    """Perplexity of A / perplexity of B; below 1, A is better."""
    ratio_low: float
    """Lower end of its interval."""
    ratio_high: float
    """Upper end."""
    difference: float
    """Mean NLL of A - mean NLL of B, nats a token; equals log(ratio)."""
    difference_low: float
    """Lower end of its interval."""
    difference_high: float
    """Upper end."""
    n: int
    """Items."""
    groups: int
    """Clusters that were resampled."""
    resamples: int
    """Bootstrap draws."""


def paired_bootstrap(
    nll_a: Values,
    nll_b: Values,
    tokens: NDArray[np.int64],
    groups: Sequence[str],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> PairedComparison:
    """Compares two models' perplexities on the same items.

    Perplexity = exp(sum of NLL / sum of tokens), so an item counts by its tokens.

    Args:
        nll_a: Summed negative log-likelihood of each item under model A, nats, [n].
        nll_b: The same under model B.
        tokens: Tokens of each item, [n], each >= 1.
        groups: Cluster of each item, n of them.
        rng: Draws the clusters.
        resamples: Draws, >= 1.
        level: Of the interval, in (0, 1).

    Returns:
        Point estimates on all items and their percentile intervals.

    Raises:
        ValueError: Lengths differ, there are no items, a number is not finite, or an item has no
            tokens.
    """
    _check(nll_a, nll_b, tokens, groups, resamples=resamples, level=level)
    drawn = resample(groups, rng=rng, resamples=resamples)
    difference = np.asarray(nll_a, dtype=np.float64) - np.asarray(nll_b, dtype=np.float64)
    sizes = drawn.sums(np.asarray(tokens, dtype=np.float64))
    low, high = percentiles(drawn.sums(difference) / sizes, level)
    point = float(difference.sum() / tokens.sum())
    return PairedComparison(
        ratio=float(np.exp(point)),
        ratio_low=float(np.exp(low)),
        ratio_high=float(np.exp(high)),
        difference=point,
        difference_low=low,
        difference_high=high,
        n=len(groups),
        groups=drawn.clusters,
        resamples=resamples,
    )


def _check(
    nll_a: Values,
    nll_b: Values,
    tokens: NDArray[np.int64],
    groups: Sequence[str],
    *,
    resamples: int,
    level: float,
) -> None:
    lengths = {len(nll_a), len(nll_b), len(tokens), len(groups)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"paired_bootstrap needs equal lengths >= 1, not {sorted(lengths)}.")
    if not (np.isfinite(nll_a).all() and np.isfinite(nll_b).all()):
        raise ValueError("paired_bootstrap: a negative log-likelihood is not finite.")
    if np.min(tokens) < 1:
        raise ValueError("paired_bootstrap: an item has no tokens.")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError("paired_bootstrap needs resamples >= 1 and a level between 0 and 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioInterval:
    """Mean of A / mean of B over the same items."""

    ratio: float
    """On all items; infinite when B's mean is 0."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end."""


def ratio_bootstrap(values_a: Values, values_b: Values, resampling: Resampling) -> RatioInterval:
    """Compares the means of two models' per-item values (>= 0) on the same items.

    Args:
        values_a: Of model A, [n].
        values_b: Of model B, [n].
        resampling: Of the items.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(resampling.sums(values_a) / resampling.sums(values_b), nan=1.0)
        ratio = float(np.divide(values_a.sum(), values_b.sum()))
    low, high = percentiles(ratios)
    return RatioInterval(ratio=ratio, low=low, high=high)


def gain_score(
    values_a: Values, values_b: Values, resampling: Resampling, *, name: str, protocol: str
) -> Score:
    """Mean of A - mean of B over the same items, where more is better.

    Args:
        values_a: Of model A, one an item, [n].
        values_b: Of model B, [n].
        resampling: Of the items.
        name: Of the score.
        protocol: What was subtracted from what.
    """
    gains = np.asarray(values_a - values_b, dtype=np.float64)
    score = Score(
        name=name,
        value=float(gains.mean()),
        unit="",
        higher_is_better=True,
        n=len(gains),
        protocol=protocol,
    )
    return with_interval(score, gains, resampling)
