"""What an encoder is: captions and images in one space of unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""[B, d] float32, unit rows."""

Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
"""[B, H, W, 3] uint8, or B arrays (H, W, 3) uint8 of any sizes."""


@runtime_checkable
class MultimodalEncoder(Protocol):
    """Both towers of a frozen encoder (RA-CM3 takes CLIP; arXiv:2211.12561, section 3.2)."""

    @property
    def dim(self) -> int:
        """Length d of every vector, the same for both towers."""

    def encode_text(self, captions: Sequence[str]) -> Vectors:
        """Captions (any unicode) to [B, d] unit vectors; [0, d] for none."""

    def encode_images(self, images: Images) -> Vectors:
        """RGB images, 0..255, to [B, d] unit vectors; [0, d] for none."""


def unit(vectors: NDArray[np.floating[Any]]) -> Vectors:
    """Scales each row of [B, d] to length 1 (a zero row stays zero), as float32."""
    wide = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    return np.asarray(wide / np.where(norms == 0, 1, norms), dtype=np.float32)
