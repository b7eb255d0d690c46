"""Images against their originals, pixel by pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from racm3.metrics.score import Score, mean_score

MAX_PSNR = 100.0
"""dB given to identical images, whose ratio is infinite."""


def psnr_values(made: NDArray[np.uint8], originals: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns 10 log10(255**2 / mean squared error) of each pair, at most `MAX_PSNR`.

    Args:
        made: uint8 [n, H, W, 3].
        originals: uint8 [n, H, W, 3].

    Returns:
        [n], dB.

    Raises:
        ValueError: The shapes differ.
    """
    if made.shape != originals.shape or made.ndim != 4:
        raise ValueError(
            f"PSNR needs equal shapes [n, H, W, 3], not {list(made.shape)} and "
            f"{list(originals.shape)}."
        )
    difference = made.astype(np.float64) - originals.astype(np.float64)
    errors = (difference**2).mean(axis=(1, 2, 3))
    least = 255.0**2 / 10.0 ** (MAX_PSNR / 10.0)
    return np.asarray(10.0 * np.log10(255.0**2 / np.maximum(errors, least)), dtype=np.float64)


def psnr(made: NDArray[np.uint8], originals: NDArray[np.uint8]) -> Score:
    """Mean over images of the peak signal-to-noise ratio; arguments as of `psnr_values`."""
    return mean_score(
        psnr_values(made, originals).tolist(),
        name="psnr",
        unit="dB",
        higher_is_better=True,
        protocol="mean over images of the PSNR against the original image, 8-bit RGB",
    )
