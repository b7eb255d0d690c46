"""The one id space that text, image codes and special tokens share.

`special | text | image`, in this order: special ids do not depend on the sizes of the other two.
The names are those of the public CM3 code base: `</s>` closes a sample, `<break>` stands between
its segments, `<sentinel:i>` stands for span i, `<eoss>` ends a span that was moved to the tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ids = TypeVar("Ids", int, Tensor, NDArray[np.int64])

_FIRST_SENTINEL = 4


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Sizes of the three ranges, and the way between them.

    The shifts take one int, a torch tensor or a numpy array, and do not check ranges: they run on
    every token. `special_name` is for people.

    Raises:
        ValueError: when a size is not positive.
    """

    text_size: int
    """Text tokens: the text tokenizer's `vocab_size`."""

    image_size: int
    """Image codes: the image tokenizer's `codebook_size`."""

    num_sentinels: int = 16
    """Most spans a sample can have. 16 is the CM3 paper's clamp; its code has 256 or 512."""

    def __post_init__(self) -> None:
        for name in ("text_size", "image_size", "num_sentinels"):
            if getattr(self, name) < 1:
                raise ValueError(f"Vocabulary.{name} must be at least 1, not {getattr(self, name)}")

    @property
    def pad_id(self) -> int:
        """Fills rows to the right; never a target."""
        return 0

    @property
    def document_end_id(self) -> int:
        """`</s>`: opens and closes a sample."""
        return 1

    @property
    def break_id(self) -> int:
        """`<break>`: closes a caption, or the image of a context."""
        return 2

    @property
    def eoss_id(self) -> int:
        """`<eoss>`: ends a span in the tail."""
        return 3

    def sentinel_id(self, index: int) -> int:
        """Id of `<sentinel:index>`.

        Raises:
            ValueError: when the vocabulary has no such sentinel.
        """
        if not 0 <= index < self.num_sentinels:
            raise ValueError(
                f"sentinel {index} does not exist: the vocabulary has {self.num_sentinels}"
            )
        return _FIRST_SENTINEL + index

    @property
    def sentinel_range(self) -> range:
        """Ids of all sentinels."""
        return range(_FIRST_SENTINEL, _FIRST_SENTINEL + self.num_sentinels)

    @property
    def text_range(self) -> range:
        """Ids of all text tokens."""
        start = self.sentinel_range.stop
        return range(start, start + self.text_size)

    @property
    def image_range(self) -> range:
        """Ids of all image codes."""
        start = self.text_range.stop
        return range(start, start + self.image_size)

    @property
    def size(self) -> int:
        """Number of ids: rows of the embedding, width of the logits."""
        return self.image_range.stop

    def to_text_id(self, token: Ids) -> Ids:
        """Text token 0..text_size-1 -> id."""
        return token + self.text_range.start

    def from_text_id(self, token_id: Ids) -> Ids:
        """Id in `text_range` -> text token."""
        return token_id - self.text_range.start

    def to_image_id(self, code: Ids) -> Ids:
        """Image code 0..image_size-1 -> id."""
        return code + self.image_range.start

    def from_image_id(self, token_id: Ids) -> Ids:
        """Id in `image_range` -> image code."""
        return token_id - self.image_range.start

    def special_name(self, token_id: int) -> str:
        """How a special id is written, such as `<break>`.

        Raises:
            ValueError: when the id is not special.
        """
        if token_id in self.sentinel_range:
            return f"<sentinel:{token_id - _FIRST_SENTINEL}>"
        names = {
            self.pad_id: "<pad>",
            self.document_end_id: "</s>",
            self.break_id: "<break>",
            self.eoss_id: "<eoss>",
        }
        if token_id not in names:
            raise ValueError(f"id {token_id} is not a special token")
        return names[token_id]
