"""What every image tokenizer is: pixels to a grid of codes, and back."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ImageTokenizer(Protocol):
    """Turns square RGB images into row-major grids of discrete codes, and back.

    Laws: codes are in 0..codebook_size-1; `encode` has no randomness; a batch gives what its images
    give one by one; `decode(encode(x))` has x's size.
    """

    @property
    def image_size(self) -> int:
        """Height and width in pixels of every image read and written."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns (h, w) of codes that one image has."""

    @property
    def codebook_size(self) -> int:
        """Number of different codes."""

    def encode(self, images: Tensor) -> Tensor:
        """Returns the codes of images.

        Args:
            images: float32 [B, 3, image_size, image_size], in [0, 1].

        Returns:
            int64 [B, h*w], row-major, each in 0..codebook_size-1.

        Raises:
            ValueError: The images have another shape.
        """

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the images that codes stand for.

        Args:
            codes: int64 [B, h*w], row-major, each in 0..codebook_size-1.

        Returns:
            float32 [B, 3, image_size, image_size], in [0, 1].

        Raises:
            ValueError: The codes have another shape or are out of range.
        """
