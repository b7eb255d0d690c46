"""Distances of two sets of image features by maximum mean discrepancy: KID and CMMD.

Both are unbiased estimates, so a few hundred images will do, and they may be slightly negative.
KID: polynomial kernel of degree 3 (Binkowski et al., arXiv:1801.01401). The original uses Inception
features; we take the features we are given and the protocol must name them.
CMMD: Gaussian kernel of sigma 10 on unit features, times 1000 (Jayasumana et al.,
arXiv:2401.09603).

Where the sets are pairs (an image made for a prompt, and the real image of that prompt), the
estimates are unbiased only if an image does not meet what belongs to its own prompt: a made image
is nearer to its own original than to others, and that lowers the distance by about 2 / n of the
kernel's spread, the more so the better the model. `pairs="apart"` leaves out all pairs of items
within one cluster (concept); `"all"` is the usual estimate, which differs where n is a few hundred.

Intervals: whole clusters of pairs are drawn with replacement. A plain bootstrap of the estimate
would be biased, since an item drawn twice meets itself. So pairs of items of two clusters, which
count as often as the product of how often each cluster was drawn, are averaged apart from pairs
within a cluster, which count as often as that cluster; the two means are put together in the
proportion that they have in the whole. The kernel is computed once, in blocks.

m and n items, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from racm3.metrics.bootstrap import Resampling, Values, percentiles
from racm3.metrics.score import Score

CMMD_SIGMA = 10.0
"""Bandwidth of the Gaussian kernel."""
CMMD_SCALE = 1000.0
"""What the authors multiply by, for numbers that can be read."""
FEWEST_CLUSTERS = 10
"""With fewer there is no interval."""
_ROWS = 1024
"""Rows of the kernel matrix that are in memory at a time."""

Features = NDArray[np.float32] | NDArray[np.float64]
Kernel = Callable[[Values, Values], Values]
Metric = Literal["kid", "cmmd"]
Pairs = Literal["all", "apart"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """A distance, and what it was in each bootstrap draw."""

    score: Score
    draws: Values
    """[resamples]; empty where there is no interval."""


def polynomial_kernel(x: Values, y: Values, *, degree: int = 3) -> Values:
    """Returns (x.y / d + 1)**degree: x [m, d], y [n, d] -> [m, n]."""
    return np.asarray((x @ y.T / x.shape[1] + 1.0) ** degree, dtype=np.float64)


def gaussian_kernel(x: Values, y: Values, *, sigma: float) -> Values:
    """Returns exp(-|x-y|**2 / (2 sigma**2)): x [m, d], y [n, d] -> [m, n]."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2.0 * x @ y.T
    return np.asarray(np.exp(-np.maximum(squares, 0.0) / (2.0 * sigma**2)), dtype=np.float64)


def kid(
    made: Features,
    real: Features,
    *,
    features: str,
    resampling: Resampling | None = None,
    pairs: Pairs = "all",
) -> Score:
    """Kernel Inception distance of made images from real ones, on given features.

    Arguments and errors as of `distance`.
    """
    return distance("kid", made, real, features=features, resampling=resampling, pairs=pairs).score


def cmmd(
    made: Features,
    real: Features,
    *,
    features: str,
    resampling: Resampling | None = None,
    pairs: Pairs = "all",
) -> Score:
    """CLIP maximum mean discrepancy of made images from real ones, times 1000.

    The unbiased estimate; the authors' code uses the biased one. Arguments and errors as of
    `distance`; features are brought to unit length here.
    """
    return distance("cmmd", made, real, features=features, resampling=resampling, pairs=pairs).score


def distance(
    metric: Metric,
    made: Features,
    real: Features,
    *,
    features: str,
    resampling: Resampling | None = None,
    pairs: Pairs = "all",
    samples: int = 1,
) -> Distance:
    """Measures one of the two distances.

    Args:
        metric: Which.
        made: Features of made images, [m, d].
        real: Features of real images, [n, d].
        features: What they are features of, for the protocol.
        resampling: Of the real images, where those made for real[i] are made[i * samples] and on
            (m = n * samples); `None` where the sets do not belong together: there is no interval
            then, nor with fewer than `FEWEST_CLUSTERS` clusters.
        pairs: Which items meet: all, or only those of different clusters.
        samples: Made images of each real one.

    Returns:
        The estimate on all items with its percentile interval, and the draws.

    Raises:
        ValueError: The shapes do not fit, a set has fewer than two items, or `pairs` is ``apart``
            and there are no two clusters.
    """
    x, y = _checked(made, real, resampling, samples)
    if pairs == "apart" and (resampling is None or resampling.clusters < 2):
        raise ValueError(f"{metric}: pairs of different clusters need two clusters at least.")
    if metric == "cmmd":
        x, y = _unit(x), _unit(y)
    kernel, scale, protocol = _KERNELS[metric]
    value, draws = _mmd2(x, y, kernel, resampling, pairs, samples)
    low = high = None
    protocol = f"{protocol} {features}; {len(y)} real images"
    protocol += f", {samples} made of each" if samples > 1 else ""
    protocol += "; pairs of different concepts only" if pairs == "apart" else ""
    if resampling is not None and len(draws):
        low, high = percentiles(scale * draws)
        protocol += f"; {resampling.said}"
    return Distance(
        score=Score(
            name=metric,
            value=scale * value,
            unit="",
            higher_is_better=False,
            n=len(x),
            low=low,
            high=high,
            protocol=protocol,
        ),
        draws=scale * draws,
    )


def compare_distances(ours: Distance, base: Distance, *, against: str) -> list[Score]:
    """Difference and ratio of two models' distances from the same real images.

    Args:
        ours: Of the model.
        base: Of the baseline, on the same pairs and draws.
        against: Name of the baseline.

    Returns:
        ``<metric>_difference`` (ours - base) and ``<metric>_ratio`` (ours / base), below 0 and
        below 1 where ours is better. There is no ratio where the baseline's distance is not above 0
        in every draw, and nothing without draws.

    Raises:
        ValueError: The two were not measured on the same draws.
    """
    if len(ours.draws) != len(base.draws):
        raise ValueError("compare_distances: the two were not measured on the same draws.")
    if not len(ours.draws):
        return []
    name = ours.score.name
    sure = base.score.value > 0 and bool((base.draws > 0).all())
    how = f"{name} against {against}, same prompts and draws; {ours.score.protocol}"
    if not sure:
        how += f"; no ratio, because the {name} of {against} is not above 0 in every draw"
    pairs = [("difference", ours.score.value - base.score.value, ours.draws - base.draws)]
    if sure:
        pairs.append(("ratio", ours.score.value / base.score.value, ours.draws / base.draws))
    found = []
    for kind, value, draws in pairs:
        low, high = percentiles(draws)
        found.append(
            Score(
                name=f"{name}_{kind}",
                value=value,
                unit="ratio" if kind == "ratio" else "",
                higher_is_better=False,
                n=ours.score.n,
                low=low,
                high=high,
                protocol=how,
            )
        )
    return found


def _cmmd_kernel(x: Values, y: Values) -> Values:
    return gaussian_kernel(x, y, sigma=CMMD_SIGMA)


_KERNELS: dict[Metric, tuple[Kernel, float, str]] = {
    "kid": (polynomial_kernel, 1.0, "unbiased MMD^2, polynomial kernel of degree 3, on"),
    "cmmd": (
        _cmmd_kernel,
        CMMD_SCALE,
        "1000 x unbiased MMD^2, Gaussian kernel of sigma 10, on unit",
    ),
}
"""Kernel, scale and the beginning of the protocol."""


def _checked(
    made: Features, real: Features, resampling: Resampling | None, samples: int
) -> tuple[Values, Values]:
    if made.ndim != 2 or real.ndim != 2 or made.shape[1] != real.shape[1]:
        raise ValueError(
            f"Features must be [m, d] and [n, d], not {list(made.shape)} and {list(real.shape)}."
        )
    if len(made) < 2 or len(real) < 2:
        raise ValueError(
            f"An unbiased MMD needs two items in each set, not {len(made)} and {len(real)}."
        )
    known = None if resampling is None else len(resampling.cluster)
    if known is not None and (len(real), len(made)) != (known, samples * known):
        raise ValueError(
            f"An interval needs {samples} made for each real image: {len(made)} made and "
            f"{len(real)} real images, {known} clusters."
        )
    return np.asarray(made, dtype=np.float64), np.asarray(real, dtype=np.float64)


def _unit(x: Values) -> Values:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.maximum(lengths, 1e-12), dtype=np.float64)


def _mmd2(
    x: Values,
    y: Values,
    kernel: Kernel,
    resampling: Resampling | None,
    pairs: Pairs,
    samples: int,
) -> tuple[float, Values]:
    """The estimate (a U-statistic) on all items, and in each draw if there are clusters enough."""
    if resampling is None:
        xx, yy, xy = (_pair_mean(a, b, kernel) for a, b in ((x, x), (y, y), (x, y)))
        return xx + yy - 2.0 * xy, np.empty(0)
    made, real = (
        _Items.of(values, np.repeat(resampling.cluster, each), resampling.clusters)
        for values, each in ((x, samples), (y, 1))
    )
    sets = ((made, made), (real, real), (made, real))
    parts = [_pair_means(a, b, kernel, resampling.times, pairs) for a, b in sets]
    value, draws = (parts[0][i] + parts[1][i] - 2.0 * parts[2][i] for i in (0, 1))
    known = resampling.clusters >= FEWEST_CLUSTERS
    return float(value), np.asarray(draws) if known else np.empty(0)


def _pair_mean(x: Values, y: Values, kernel: Kernel) -> float:
    """Mean of the kernel over all pairs; of a set with itself, over pairs of two items."""
    total = sum(float(block.sum()) for _, block in _blocks(x, y, kernel))
    return total / (len(x) * (len(y) - (x is y)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Items:
    """Items sorted by cluster."""

    values: Values
    cluster: NDArray[np.int64]
    sizes: Values
    """Items of each cluster."""

    @classmethod
    def of(cls, values: Values, cluster: NDArray[np.int64], clusters: int) -> _Items:
        order = np.argsort(cluster, kind="stable")
        sizes = np.bincount(cluster, minlength=clusters).astype(np.float64)
        return cls(values=values[order], cluster=cluster[order], sizes=sizes)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each cluster begins."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)


def _pair_means(
    x: _Items, y: _Items, kernel: Kernel, times: Values, pairs: Pairs
) -> tuple[float, Values]:
    """As `_pair_mean`, over the pairs that are asked for, and the same in each draw."""
    same = x is y
    apart, within, total = np.zeros(len(times)), np.empty(len(x.values)), 0.0
    for rows, block in _blocks(x.values, y.values, kernel):
        summed = np.add.reduceat(block, y.starts, axis=1)
        own = (np.arange(len(summed)), x.cluster[rows])
        within[rows], summed[own] = summed[own], 0.0
        total += float(summed.sum())
        apart += ((times[:, x.cluster[rows]] @ summed) * times).sum(1)
    inside = np.add.reduceat(within, x.starts)
    number_within, both = x.sizes * (y.sizes - same), x.sizes * y.sizes
    share = 0.0
    if pairs == "all":
        share = number_within.sum() / (len(x.values) * (len(y.values) - same))
    near = _means(times @ inside, times @ number_within, inside.sum(), number_within.sum())
    far = _means(
        apart,
        (times @ x.sizes) * (times @ y.sizes) - times**2 @ both,
        total,
        len(x.values) * len(y.values) - both.sum(),
    )
    mean = share * near[0] + (1.0 - share) * far[0]
    return float(mean), np.asarray(share * near[1] + (1.0 - share) * far[1])


def _blocks(x: Values, y: Values, kernel: Kernel) -> Iterator[tuple[slice, Values]]:
    """Rows of the kernel matrix; of a set with itself the diagonal is 0."""
    for start in range(0, len(x), _ROWS):
        rows = slice(start, min(start + _ROWS, len(x)))
        block = kernel(x[rows], y)
        if x is y:
            block[np.arange(len(block)), np.arange(start, rows.stop)] = 0.0
        yield rows, block


def _means(
    sums: Values, numbers: Values, whole_sum: float, whole_number: float
) -> tuple[float, Values]:
    """Mean of all pairs of a sort, and of each draw; a draw without any takes that of all."""
    mean = whole_sum / whole_number if whole_number else 0.0
    out = np.full(len(sums), mean)
    return mean, np.asarray(np.divide(sums, numbers, out=out, where=numbers > 0))
