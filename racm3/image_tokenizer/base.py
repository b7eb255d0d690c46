"""What every image tokenizer is: pixels to a grid of codes, and back."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ImageTokenizer(Protocol):
    """Turns square RGB images into row-major grids of discrete codes, and back.

    Laws: codes are in 0..codebook_size-1; `encode` has no randomness; a batch gives what its images
    give one by one; `decode(encode(x))` has x's size. Tensors of any device are taken, and results
    are on the device of the argument.
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

    @property
    def code_vectors(self) -> Tensor:
        """float32 [codebook_size, d]: what the decoder reads for each code."""

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


def checked_images(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """Returns images that a tokenizer can encode.

    Raises:
        ValueError: They are not [B, 3, image_size, image_size].
    """
    expected = (3, tokenizer.image_size, tokenizer.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(
            f"encode() takes images [B, {', '.join(map(str, expected))}], "
            f"not {list(images.shape)}: resize them first."
        )
    return images


def checked_codes(tokenizer: ImageTokenizer, codes: Tensor) -> Tensor:
    """Returns codes that a tokenizer can decode.

    Raises:
        ValueError: They are not [B, h*w], or some are not in 0..codebook_size-1.
    """
    length = tokenizer.grid[0] * tokenizer.grid[1]
    last = tokenizer.codebook_size - 1
    if codes.ndim != 2 or codes.shape[1] != length:
        raise ValueError(f"decode() takes codes [B, {length}], not {list(codes.shape)}.")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) <= last:
        raise ValueError(f"decode() takes codes in 0..{last}; some are not.")
    return codes
