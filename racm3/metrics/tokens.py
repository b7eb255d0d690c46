"""Drawn image codes against those of the original."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from racm3.metrics.score import Score, mean_score


def token_accuracies(drawn: NDArray[np.int64], true: NDArray[np.int64]) -> NDArray[np.float64]:
    """Fraction of places that have the original's code, of each original, [n].

    Args:
        drawn: Codes of the made images, [n, samples, h*w]; the mean over samples is taken.
        true: Codes of the originals, [n, h*w].

    Raises:
        ValueError: The shapes do not fit.
    """
    if drawn.ndim != 3 or drawn[:, 0].shape != true.shape or true.shape[1] == 0:
        raise ValueError(
            f"token accuracy needs shapes [n, samples, h*w] and [n, h*w], not {list(drawn.shape)} "
            f"and {list(true.shape)}."
        )
    return np.asarray((drawn == true[:, None]).mean(axis=(1, 2)), dtype=np.float64)


def token_accuracy(drawn: NDArray[np.int64], true: NDArray[np.int64]) -> Score:
    """The mean of `token_accuracies` over originals, with its interval; arguments as there.

    Returns:
        The score in [0, 1]. Neighbouring codes look alike, so it is far below what the eye sees.
    """
    samples = drawn.shape[1] if drawn.ndim == 3 else 0
    return mean_score(
        token_accuracies(drawn, true).tolist(),
        name="token_accuracy",
        unit="fraction",
        higher_is_better=True,
        protocol="fraction of image codes equal to the original's, place by place; samples an "
        f"original: {samples}",
    )
