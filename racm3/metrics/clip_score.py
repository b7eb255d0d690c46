"""How well images fit their prompts, by the cosine of a scorer's features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from racm3.metrics.score import Score, mean_score


def clip_score(texts: NDArray[np.float32], images: NDArray[np.float32], *, scorer: str) -> Score:
    """Mean cosine of each prompt and its image, times 100.

    We differ from Hessel et al. (arXiv:2104.08718): no clipping at 0 and no factor 2.5.

    Args:
        texts: Features of the prompts, [n, d], any length greater than 0.
        images: Features of the images, [n, d], row by row those of `texts`.
        scorer: Name of the encoder, for the protocol. It must not be the one that retrieves or
            re-ranks.

    Returns:
        The score in [-100, 100].

    Raises:
        ValueError: The shapes differ or a row has no length.
    """
    return mean_score(
        clip_values(texts, images).tolist(),
        name="clip_score",
        unit="",
        higher_is_better=True,
        protocol=f"100 x mean cosine of prompt and image by {scorer}",
    )


def clip_values(texts: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.float64]:
    """The 100-fold cosine of each pair, [n]; arguments and errors as of `clip_score`."""
    if texts.ndim != 2 or texts.shape != images.shape:
        raise ValueError(
            f"clip_score needs one image a text, not {list(images.shape)} and {list(texts.shape)}."
        )
    left, right = texts.astype(np.float64), images.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    if not (lengths > 0).all():
        raise ValueError("clip_score: a feature vector is zero (or not a number).")
    return np.asarray(100.0 * ((left * right).sum(1) / lengths), dtype=np.float64)
