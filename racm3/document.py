"""A document: a caption and an image. What the memory holds and the generator writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ContextModality = Literal["both", "text", "image"]
"""What a context shows of its document: caption and image, or one of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A caption and its image, as pixels."""

    document_id: str
    """sha256 (hex) of the raw image's and the raw caption's digests."""

    caption: str
    """Any unicode text; untrusted."""

    image: NDArray[np.uint8] | None
    """RGB, (H, W, 3), 0..255; None where only the caption is known (a prompt)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentTokens:
    """A document as tokens of its two modalities, each counted from 0.

    No special tokens: what separates documents is the sequence's business
    (`racm3.sequence.layout`), and so is the shift into the shared id space (`racm3.vocabulary`).
    """

    text: tuple[int, ...]
    """Tokens of the caption, each in 0..text_size-1; empty for an empty caption."""

    image: tuple[int, ...]
    """VQ codes of the image, row-major, h*w of them, each in 0..image_size-1; empty in a context
    that is fed without its image."""

    def showing(self, modality: ContextModality) -> DocumentTokens:
        """The document as a context of this modality: the other side is empty."""
        if modality == "text":
            return replace(self, image=())
        return replace(self, text=()) if modality == "image" else self
