"""Images of documents whose captions are alike, drawn together: the retriever's image side.

A contrast of captions and images alone (CLIP) does not ask that two drawings of one thing have
vectors that are close, unless the caption says all that is seen. Of a few thousand documents a
small tower learns the captions by heart, and a drawing by another hand of a thing that it was not
shown is then found by chance (`docs/experiments.md`). So half of a batch are *partners* of the
other half, other documents with nearly the same caption, and each image has to find its partner's
among all images of the batch: the supervised contrastive loss (arXiv:2004.11362), with captions for
classes.

B images of a batch: B / 2 documents, then the partner of each. d channels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["SHARPNESS", "alike", "image_contrast", "pick_partners", "unmistakable_clip_loss"]

SHARPNESS = 10.0
"""Factor of cosines of two images."""
_CHUNK = 1024


def alike(vectors: Tensor, threshold: float) -> list[NDArray[np.int64]]:
    """For each document the others whose captions are alike, by position.

    Args:
        vectors: [N, d], of the captions; of any length, not 0.
        threshold: Least cosine, in (0, 1].
    """
    units = functional.normalize(vectors.float(), dim=1)
    found: list[NDArray[np.int64]] = []
    for start in range(0, len(units), _CHUNK):
        near = units[start : start + _CHUNK] @ units.T >= threshold
        near[torch.arange(len(near)), torch.arange(start, start + len(near))] = False
        found += [np.flatnonzero(row) for row in near.numpy()]
    return found


def pick_partners(
    chosen: NDArray[np.int64], partners: list[NDArray[np.int64]], rng: np.random.Generator
) -> NDArray[np.int64]:
    """One partner of each, drawn; a document that has none is its own (noise tells them apart)."""
    draws = rng.random(len(chosen))
    return np.array(
        [
            partners[one][int(draw * len(partners[one]))] if len(partners[one]) else one
            for one, draw in zip(chosen, draws, strict=True)
        ],
        dtype=np.int64,
    )


def image_contrast(image: Tensor, caption: Tensor) -> Tensor:
    """Mean cross-entropy of finding the partner's image among all others of the batch.

    Args:
        image: Unit vectors [B, d].
        caption: int64 [B], equal for equal captions: an image that is called as the one that asks,
            but is not its partner, is no wrong answer and is left out.
    """
    half = len(image) // 2
    own = torch.arange(len(image), device=image.device)
    partner = own.roll(half)
    out = _same(caption).index_put((own, partner), torch.tensor(False, device=image.device))
    logits = (SHARPNESS * image @ image.T).masked_fill(out, -torch.inf)
    return functional.cross_entropy(logits, partner)


def unmistakable_clip_loss(image: Tensor, text: Tensor, scale: Tensor, caption: Tensor) -> Tensor:
    """CLIP's loss where captions repeat: another's equal caption is no wrong answer.

    Args:
        image: Unit vectors [B, d].
        text: Unit vectors [B, d] of their captions.
        scale: Factor of cosines.
        caption: As of `image_contrast`.
    """
    own = torch.arange(len(image), device=image.device)
    others = _same(caption).index_put((own, own), torch.tensor(False, device=image.device))
    logits = (scale * image @ text.T).masked_fill(others, -torch.inf)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def _same(caption: Tensor) -> Tensor:
    """Bool [B, B]."""
    return caption[:, None] == caption[None, :]
