"""The memory: which document stands at which position, and its vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from racm3.encoder.base import Vectors, unit


def document_vectors(text: Vectors, image: Vectors) -> Vectors:
    """unit(unit(text) + unit(image)), [B, d].

    RA-CM3 averages both towers and rescales (arXiv:2211.12561, section 3.2); whether it
    normalises each tower first is not stated. We do: both sides weigh alike, and all scores lie
    in [-1, 1].

    Raises:
        ValueError: The shapes differ.
    """
    if text.shape != image.shape:
        raise ValueError(f"Text vectors are {text.shape}, image vectors {image.shape}: match them.")
    return unit(unit(text).astype(np.float64) + unit(image))


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Retrievable documents by position; a position means nothing outside its memory."""

    document_ids: Sequence[str]
    """One a position, all different. A tuple is checked; another sequence, such as a view of a
    table's column, is believed, for it may be too long to walk."""
    vectors: Vectors
    """[N, d] document vectors, unit."""
    image_vectors: Vectors | None = None
    """[N, d] image vectors, unit; needed where near copies are judged by image."""
    sources: Sequence[str] | None = None
    """The source each document came from; needed for a limit per source."""
    content: Sequence[str] | None = None
    """Equal for exact copies (a digest of pixels and caption); None: no two are equal."""

    def __post_init__(self) -> None:
        count = len(self.document_ids)
        if isinstance(self.document_ids, tuple) and len(set(self.document_ids)) != count:
            raise ValueError("The memory holds a document twice: give each document_id once.")
        for name in ("vectors", "image_vectors", "sources", "content"):
            column = getattr(self, name)
            if column is not None and len(column) != count:
                raise ValueError(
                    f"The memory has {count} document ids but {len(column)} {name}: match them."
                )

    def __len__(self) -> int:
        return len(self.document_ids)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    def lookup(self, positions: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The document ids at positions in [0, N)."""
        return [self.document_ids[int(position)] for position in positions]
