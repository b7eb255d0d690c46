"""Distances of two sets of image features by maximum mean discrepancy: KID and CMMD.

Both are unbiased estimates, so a few hundred images will do, and they may be slightly negative.
KID: polynomial kernel of degree 3 (Binkowski et al., arXiv:1801.01401). The original uses Inception
features; we take the features we are given and the protocol must name them.
CMMD: Gaussian kernel of sigma 10 on unit features, times 1000 (Jayasumana et al.,
arXiv:2401.09603).

m and n items, d features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from racm3.metrics.score import Score

CMMD_SIGMA = 10.0
"""Bandwidth of the Gaussian kernel."""
CMMD_SCALE = 1000.0
"""What the authors multiply by, for numbers that can be read."""

Features = NDArray[np.float32] | NDArray[np.float64]


def unbiased_mmd2(
    k_xx: NDArray[np.float64], k_yy: NDArray[np.float64], k_xy: NDArray[np.float64]
) -> float:
    """Returns the unbiased estimate of the squared maximum mean discrepancy (U-statistic).

    Args:
        k_xx: Kernel among the first set, [m, m], m >= 2.
        k_yy: Kernel among the second set, [n, n], n >= 2.
        k_xy: Kernel across, [m, n].

    Raises:
        ValueError: A set has fewer than two items.
    """
    m, n = k_xy.shape
    if m < 2 or n < 2:
        raise ValueError(f"An unbiased MMD needs two items in each set, not {m} and {n}.")
    within_x = (k_xx.sum() - np.trace(k_xx)) / (m * (m - 1))
    within_y = (k_yy.sum() - np.trace(k_yy)) / (n * (n - 1))
    return float(within_x + within_y - 2.0 * k_xy.mean())


def polynomial_kernel(
    x: NDArray[np.float64], y: NDArray[np.float64], *, degree: int = 3
) -> NDArray[np.float64]:
    """Returns (x.y / d + 1)**degree: x [m, d], y [n, d] -> [m, n]."""
    return np.asarray((x @ y.T / x.shape[1] + 1.0) ** degree, dtype=np.float64)


def gaussian_kernel(
    x: NDArray[np.float64], y: NDArray[np.float64], *, sigma: float
) -> NDArray[np.float64]:
    """Returns exp(-|x-y|**2 / (2 sigma**2)): x [m, d], y [n, d] -> [m, n]."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2.0 * x @ y.T
    return np.asarray(np.exp(-np.maximum(squares, 0.0) / (2.0 * sigma**2)), dtype=np.float64)


def kid(
    made: Features,
    real: Features,
    *,
    features: str,
    rng: np.random.Generator,
    resamples: int = 100,
    subset: int | None = None,
) -> Score:
    """Kernel Inception distance of made images from real ones, on given features.

    Args:
        made: Features of made images, [m, d].
        real: Features of real images, [n, d].
        features: What they are features of, for the protocol.
        rng: Chooses the subsets.
        resamples: Subsets that the interval is taken from; 0 = no interval.
        subset: Items a subset, drawn without replacement; `None` = half of the smaller set.

    Returns:
        The estimate on all items. The interval is +- 1.96 standard deviations over subsets, scaled
        by sqrt(subset / smaller set) to the size of the whole.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two items.
    """
    x, y = _checked(made, real)
    return _score(
        "kid",
        scale=1.0,
        kernels=(polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)),
        rng=rng,
        resamples=resamples,
        subset=subset,
        protocol=f"unbiased MMD^2, polynomial kernel of degree 3, on {features}",
    )


def cmmd(
    made: Features,
    real: Features,
    *,
    features: str,
    rng: np.random.Generator,
    resamples: int = 100,
    subset: int | None = None,
) -> Score:
    """CLIP maximum mean discrepancy of made images from real ones, times 1000.

    Args:
        made: Features of made images, [m, d]; brought to unit length here.
        real: Features of real images, [n, d]; likewise.
        features: What they are features of, for the protocol.
        rng: Chooses the subsets.
        resamples: See `kid`.
        subset: See `kid`.

    Returns:
        The unbiased estimate (the authors' code uses the biased one) with an interval as in `kid`.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two items.
    """
    x, y = (_unit(a) for a in _checked(made, real))
    kernels = (
        gaussian_kernel(x, x, sigma=CMMD_SIGMA),
        gaussian_kernel(y, y, sigma=CMMD_SIGMA),
        gaussian_kernel(x, y, sigma=CMMD_SIGMA),
    )
    return _score(
        "cmmd",
        scale=CMMD_SCALE,
        kernels=kernels,
        rng=rng,
        resamples=resamples,
        subset=subset,
        protocol=f"1000 x unbiased MMD^2, Gaussian kernel of sigma 10, on unit {features}",
    )


def _checked(made: Features, real: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if made.ndim != 2 or real.ndim != 2 or made.shape[1] != real.shape[1]:
        raise ValueError(
            f"Features must be [m, d] and [n, d], not {list(made.shape)} and {list(real.shape)}."
        )
    return np.asarray(made, dtype=np.float64), np.asarray(real, dtype=np.float64)


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.maximum(lengths, 1e-12), dtype=np.float64)


def _score(
    name: str,
    *,
    scale: float,
    kernels: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    rng: np.random.Generator,
    resamples: int,
    subset: int | None,
    protocol: str,
) -> Score:
    k_xx, k_yy, k_xy = kernels
    value = scale * unbiased_mmd2(k_xx, k_yy, k_xy)
    smaller = min(k_xy.shape)
    size = smaller // 2 if subset is None else subset
    if subset is not None and not 2 <= subset <= smaller:
        raise ValueError(f"{name}: a subset must have 2 to {smaller} items, not {subset}.")
    low = high = None
    if resamples > 1 and size >= 2:
        draws = []
        for _ in range(resamples):
            i = rng.choice(k_xy.shape[0], size, replace=False)
            j = rng.choice(k_xy.shape[1], size, replace=False)
            draws.append(
                scale * unbiased_mmd2(k_xx[np.ix_(i, i)], k_yy[np.ix_(j, j)], k_xy[np.ix_(i, j)])
            )
        half = 1.96 * float(np.std(draws, ddof=1)) * (size / smaller) ** 0.5
        low, high = value - half, value + half
        protocol += f"; interval from {resamples} subsets of {size}"
    return Score(
        name=name,
        value=value,
        unit="",
        higher_is_better=False,
        n=k_xy.shape[0],
        low=low,
        high=high,
        protocol=protocol + f"; {k_xy.shape[1]} real images",
    )
