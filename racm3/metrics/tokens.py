"""Drawn image codes against those of the original."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from racm3.metrics.score import Score, mean_score


def token_accuracy(drawn: NDArray[np.int64], true: NDArray[np.int64]) -> Score:
    """Fraction of places that have the original's code, averaged over images.

    Args:
        drawn: Codes of the made images, [n, h*w].
        true: Codes of the originals, [n, h*w].

    Returns:
        The score in [0, 1]. Neighbouring codes look alike, so it is far below what the eye sees.

    Raises:
        ValueError: The shapes differ.
    """
    if drawn.shape != true.shape or drawn.ndim != 2 or drawn.shape[1] == 0:
        raise ValueError(
            f"token_accuracy needs equal shapes [n, h*w], not {list(drawn.shape)} and "
            f"{list(true.shape)}."
        )
    return mean_score(
        (drawn == true).mean(axis=1).tolist(),
        name="token_accuracy",
        unit="fraction",
        higher_is_better=True,
        protocol="fraction of image codes equal to the original's, place by place",
    )
