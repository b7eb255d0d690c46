"""How documents are laid out as one sequence.

`</s> T1 <break> I1 <break> T2 <break> I2 <break> T <break> I </s>`: contexts in front, the main
document last, each as caption, break, image. This is the break form of the public RA-CM3 code base
(shorter than CM3's `<img alt= src=>` markup). A separator that closes a document belongs to it; the
leading `</s>`, which is never predicted, to the first document. A context that is fed without its
caption or its image keeps its separators: `T1 <break> <break> T <break> I </s>`.
"""

from __future__ import annotations

import collections.abc
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from racm3.document import DocumentTokens
from racm3.sequence.batch import Modality
from racm3.sequence.places import PlaceTable
from racm3.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What every sequence of a run has in common.

    Raises:
        ValueError: when a size is not positive.
    """

    vocabulary: Vocabulary
    image_tokens: int
    """h*w: codes of every image."""

    max_text_tokens: int
    """Captions are cut to this many tokens; `Sequence.cut_text_tokens` counts what was lost."""

    def __post_init__(self) -> None:
        for name in ("image_tokens", "max_text_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"Layout.{name} must be at least 1, not {getattr(self, name)}")

    @property
    def places(self) -> PlaceTable:
        """The places of this layout."""
        return PlaceTable(max_text_tokens=self.max_text_tokens, image_tokens=self.image_tokens)

    def document_length(self, document: DocumentTokens) -> int:
        """Tokens that a document takes, its two separators included."""
        return min(len(document.text), self.max_text_tokens) + len(document.image) + 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """The caption or the image of one document: half-open, separators left out; may be empty."""

    start: int
    stop: int
    modality: Modality
    document: int
    """Index of the document in the order fed; the last is the main one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequence:
    """A sample before masking; arrays of length L."""

    ids: NDArray[np.int64]
    segment_of: NDArray[np.int64]
    """Index into `segments`; a separator counts to the segment that it closes."""

    segments: tuple[Segment, ...]
    """Caption, image, caption, image, ...: segment j is of document j // 2."""

    num_contexts: int
    cut_text_tokens: int
    """Caption tokens lost to `max_text_tokens`, over all documents."""

    @property
    def documents(self) -> NDArray[np.int64]:
        """Document index of each token."""
        return self.segment_of // 2

    @property
    def is_main(self) -> NDArray[np.bool_]:
        """Whether each token belongs to the main document."""
        return self.segment_of >= 2 * self.num_contexts

    def weights(self, alpha: float) -> NDArray[np.float32]:
        """1 for the main document, alpha for contexts (RA-CM3 section 3.3)."""
        return np.where(self.is_main, np.float32(1.0), np.float32(alpha))

    @property
    def main_segments(self) -> tuple[Segment, Segment]:
        """Caption and image of the main document."""
        return self.segments[-2], self.segments[-1]


def lay_out(
    main: DocumentTokens, contexts: collections.abc.Sequence[DocumentTokens], layout: Layout
) -> Sequence:
    """Lays out contexts, in the order given, and the main document.

    Raises:
        ValueError: when an image does not have `layout.image_tokens` codes; that of a context may
            have none at all.
    """
    vocabulary = layout.vocabulary
    pieces: list[tuple[int, ...] | NDArray[np.int64]] = [(vocabulary.document_end_id,)]
    lengths, segments, position, cut = [1], [], 1, 0
    for document, tokens in enumerate((*contexts, main)):
        without_image = not tokens.image and document < len(contexts)
        if len(tokens.image) != layout.image_tokens and not without_image:
            raise ValueError(
                f"document {document} of a sequence has {len(tokens.image)} image codes; the "
                f"layout has {layout.image_tokens}: tokenise it with this run's image tokenizer"
            )
        text = np.asarray(tokens.text[: layout.max_text_tokens], dtype=np.int64)
        image = np.asarray(tokens.image, dtype=np.int64)
        cut += len(tokens.text) - len(text)
        closing = vocabulary.document_end_id if document == len(contexts) else vocabulary.break_id
        for modality, ids, end in (
            (Modality.TEXT, vocabulary.to_text_id(text), vocabulary.break_id),
            (Modality.IMAGE, vocabulary.to_image_id(image), closing),
        ):
            stop = position + len(ids)
            segments.append(
                Segment(start=position, stop=stop, modality=modality, document=document)
            )
            pieces += [ids, (end,)]
            lengths.append(len(ids) + 1)
            position = stop + 1
    owners = np.array([0, *range(len(segments))])
    return Sequence(
        ids=np.concatenate(pieces).astype(np.int64, copy=False),
        segment_of=np.repeat(owners, lengths),
        segments=tuple(segments),
        num_contexts=len(contexts),
        cut_text_tokens=cut,
    )
