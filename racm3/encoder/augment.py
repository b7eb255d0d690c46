"""Noise for contrastive training: images are moved and recoloured, captions lose words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How strong the noise is; all zeros turn it off."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    shift: float = 0.12
    """Largest move, as a fraction of the half width."""
    scale: float = 0.2
    """Zoom is drawn from [1 - scale, 1 + scale]."""
    flip: float = 0.3
    """Probability of a mirror image."""
    color: float = 0.15
    """Largest relative change of a channel's gain, and half of it as an offset."""
    drop_words: float = 0.1
    """Probability that a word of the caption is left out."""

    def __post_init__(self) -> None:
        for name in ("shift", "scale", "flip", "color", "drop_words"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"augment.{name} is {value}: it must lie in [0, 1).")


def augment_images(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Moves, scales, mirrors and recolours each image on its own.

    Args:
        images: [B, 3, H, W] float, normalised to [-1, 1].
        config: Strengths.
        generator: The only source of chance (of the images' device).

    Returns:
        [B, 3, H, W]; what comes in from outside is white (1).
    """
    count, device = len(images), images.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device) * 2 - 1

    zoom = 1 + config.scale * draw()
    mirror = torch.where(draw() < 2 * config.flip - 1, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * mirror, zoom
    theta[:, :, 2] = config.shift * draw(2)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images - 1, grid, align_corners=False) + 1
    gain, offset = 1 + config.color * draw(3, 1, 1), config.color / 2 * draw(3, 1, 1)
    return moved * gain + offset


def drop_words(caption: str, rate: float, rng: np.random.Generator) -> str:
    """Leaves out each word with probability `rate`, and never all of them.

    Words are split at white space. Where every word would go, one drawn word stays.
    One number a word is drawn (and one more in that case), so the draw is a function of `rng`.
    """
    words = caption.split()
    if not words or rate == 0:
        return caption
    kept = [
        word for word, number in zip(words, rng.random(len(words)), strict=True) if number >= rate
    ]
    return " ".join(kept or [words[int(rng.integers(len(words)))]])
