"""How much of an image any tokenizer keeps: the floor under every image written in codes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from racm3.image_tokenizer.base import ImageTokenizer
from racm3.training.image_tokenizer import images_to_tensor


@torch.no_grad()
def reconstruction_quality(
    tokenizer: ImageTokenizer,
    images: NDArray[np.uint8],
    *,
    batch_size: int = 16,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """Measures images that were encoded and decoded again.

    Args:
        tokenizer: Any.
        images: uint8 [N, image_size, image_size, 3].
        batch_size: Images a pass.
        report: Told the number of images done after each pass.

    Returns:
        ``psnr``: mean over images, dB (NaN without images); ``codes_used``: fraction of the
        codebook that occurs.
    """
    used = torch.zeros(tokenizer.codebook_size, dtype=torch.bool)
    errors = []
    for first in range(0, len(images), batch_size):
        batch = images_to_tensor(images[first : first + batch_size])
        codes = tokenizer.encode(batch)
        errors.append((tokenizer.decode(codes) - batch).square().mean((1, 2, 3)))
        used[codes] = True
        report(min(first + batch_size, len(images)))
    error = torch.cat(errors).double() if errors else torch.full((1,), torch.nan).double()
    return {
        "psnr": float((-10.0 * error.clamp(min=1e-10).log10()).mean()),
        "codes_used": float(used.double().mean()),
    }
