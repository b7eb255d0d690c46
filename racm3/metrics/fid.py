"""Frechet distance of two sets of image features: FID (Heusel et al., arXiv:1706.08500).

|mu_x - mu_y|**2 + tr(C_x + C_y - 2 (C_x C_y)**(1/2)) of the two sets' means and covariances. With
C_x = A'A and C_y = B'B, where A and B are the centred features over sqrt(items - 1), the trace of
the root is the sum of the singular values of A B'. So no covariance is formed and no root of a
matrix that is not symmetric is taken; A and B enter as the triangular factors of their QR
decompositions, at most [d, d].

m and n items, d features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from racm3.metrics.score import Score

Features = NDArray[np.float32] | NDArray[np.float64]


def frechet_distance(x: Features, y: Features) -> float:
    """Frechet distance of the Gaussians with the means and covariances of two sets, float64.

    Args:
        x: [m, d], m >= 2.
        y: [n, d], n >= 2.

    Raises:
        ValueError: The shapes do not fit, a set has fewer than two items, or a number is not
            finite.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"Features must be [m, d] and [n, d], not {list(x.shape)} and {list(y.shape)}."
        )
    if len(x) < 2 or len(y) < 2:
        raise ValueError(f"A covariance needs two items in each set, not {len(x)} and {len(y)}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("Frechet distance: a feature is not finite.")
    (mean_x, root_x), (mean_y, root_y) = _moments(x), _moments(y)
    common = float(np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum())
    spread = float((root_x**2).sum() + (root_y**2).sum()) - 2.0 * common
    return float(((mean_x - mean_y) ** 2).sum()) + max(spread, 0.0)


def fid(made: Features, real: Features, *, features: str) -> Score:
    """Frechet (Inception) distance of made images from real ones; no interval.

    FID is biased upwards, by more the fewer the items, so it compares only sets of equal size, and
    a bootstrap, which repeats items, would say nothing about it: `racm3.metrics.kid` has intervals.

    Args:
        made: Features of made images, [m, d].
        real: Features of real images, [n, d].
        features: What they are features of, for the protocol.

    Raises:
        ValueError: See `frechet_distance`.
    """
    protocol = (
        f"Frechet distance of {len(made)} made and {len(real)} real images on {features}; biased "
        "upwards for few images: compare equal numbers only; no interval"
    )
    smallest, width = min(len(made), len(real)), made.shape[-1]
    if smallest <= width:
        protocol += (
            f"; rank-deficient: {smallest} images do not determine a covariance of {width} features"
        )
    return Score(
        name="fid",
        value=frechet_distance(made, real),
        unit="",
        higher_is_better=False,
        n=len(made),
        protocol=protocol,
    )


def _moments(
    x: Features,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [d], and R [min(n, d), d] with R'R the covariance (of n - 1 degrees of freedom)."""
    values = np.asarray(x, dtype=np.float64)
    mean = values.mean(axis=0)
    root = np.linalg.qr((values - mean) / np.sqrt(len(values) - 1), mode="r")
    return mean, np.asarray(root, dtype=np.float64)
