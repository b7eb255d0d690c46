"""Candidates of one prompt, scored by the retriever's CLIP: never by the model that scores runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.records import image_png

if TYPE_CHECKING:
    from racm3.encoder.base import MultimodalEncoder, Vectors
    from racm3.image_tokenizer.base import ImageTokenizer
    from racm3.sampling.tasks import Sampled
    from racm3.text_tokenizer import TextTokenizer

__all__ = ["ClipRanker", "Rank", "painted", "picture"]

Rank = Literal["clip", "likelihood"]
"""CLIP's cosine of caption and image, or the generator's own mean log-likelihood a token."""

_BATCH = 64


class ClipRanker:
    """Scores samples by how well caption and image agree; both of a sample are complete."""

    def __init__(
        self, encoder: MultimodalEncoder, images: ImageTokenizer, text: TextTokenizer
    ) -> None:
        """Takes the encoder, and what brings tokens back to pixels and words."""
        self._encoder, self._images, self._text = encoder, images, text

    def score(self, samples: Sequence[Sampled], seen: Vectors | None = None) -> list[float]:
        """Cosines, in [-1, 1], of caption and image of each sample.

        Args:
            samples: Whose captions and images are compared.
            seen: [n, d] image vectors of the pictures that the samples are captions of; None: the
                images are drawn, and looked at as their codes paint them.
        """
        scores: list[float] = []
        for start in range(0, len(samples), _BATCH):
            part = [sample.document for sample in samples[start : start + _BATCH]]
            captions = [self._text.decode(list(one.text)) for one in part]
            texts = self._encoder.encode_text(captions)
            if seen is None:
                drawn = painted(self._images, [one.image for one in part])
                images = self._encoder.encode_images(drawn)
            else:
                images = seen[start : start + _BATCH]
            scores += [float(value) for value in np.sum(texts * images, axis=1)]
        return scores


def painted(images: ImageTokenizer, codes: Sequence[Sequence[int]]) -> list[NDArray[np.uint8]]:
    """Pixels of images, each RGB uint8 (H, W, 3), of their codes, row-major."""
    import torch

    from racm3.training.image_tokenizer import tensor_to_images

    with torch.no_grad():
        pixels = images.decode(torch.tensor([list(one) for one in codes]))
    return list(tensor_to_images(pixels))


def picture(images: ImageTokenizer, codes: Sequence[int]) -> bytes:
    """One image as PNG; it depends on no other (batches round otherwise)."""
    return image_png(painted(images, [codes])[0])
