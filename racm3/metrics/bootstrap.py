"""Paired comparison of two models on the same items, by resampling clusters of items.

Items of one group (all tones and genders of one person, say) are not independent: whole groups are
drawn with replacement. Intervals are percentile intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
    nll_a: NDArray[np.float64],
    nll_b: NDArray[np.float64],
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
    names = sorted(set(groups))
    place = {name: index for index, name in enumerate(names)}
    cluster = np.array([place[name] for name in groups])
    difference = np.asarray(nll_a, dtype=np.float64) - np.asarray(nll_b, dtype=np.float64)
    sums = np.bincount(cluster, weights=difference, minlength=len(names))
    sizes = np.bincount(cluster, weights=tokens, minlength=len(names))
    drawn = rng.integers(len(names), size=(resamples, len(names)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    tail = (1.0 - level) / 2.0
    low, high = (float(q) for q in np.quantile(means, [tail, 1.0 - tail]))
    point = float(difference.sum() / tokens.sum())
    return PairedComparison(
        ratio=float(np.exp(point)),
        ratio_low=float(np.exp(low)),
        ratio_high=float(np.exp(high)),
        difference=point,
        difference_low=low,
        difference_high=high,
        n=len(groups),
        groups=len(names),
        resamples=resamples,
    )


def _check(
    nll_a: NDArray[np.float64],
    nll_b: NDArray[np.float64],
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


def ratio_bootstrap(
    values_a: NDArray[np.float64],
    values_b: NDArray[np.float64],
    groups: Sequence[str],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> RatioInterval:
    """Compares the means of two models' per-item values (>= 0) on the same items.

    Args:
        values_a: Of model A, [n].
        values_b: Of model B, [n].
        groups: Cluster of each item; clusters are resampled whole.
        rng: Draws the clusters.
        resamples: Draws, >= 1.
        level: Of the percentile interval, in (0, 1).
    """
    tokens = np.ones(len(groups), dtype=np.int64)
    _check(values_a, values_b, tokens, groups, resamples=resamples, level=level)
    names, cluster = np.unique(np.asarray(groups), return_inverse=True)
    sums_a = np.bincount(cluster, weights=values_a, minlength=len(names))
    sums_b = np.bincount(cluster, weights=values_b, minlength=len(names))
    drawn = rng.integers(len(names), size=(resamples, len(names)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(sums_a[drawn].sum(1) / sums_b[drawn].sum(1), nan=1.0)
        ratio = float(np.divide(values_a.sum(), values_b.sum()))
    tail = (1.0 - level) / 2.0
    low, high = (float(q) for q in np.quantile(ratios, [tail, 1.0 - tail]))
    return RatioInterval(ratio=ratio, low=low, high=high)
