"""Where a token stands and where the next one is expected: the grid and segment positions.

One table of places serves every document, so that "look at the same place of a context" is one
lookup for the generator. `PlaceCursor` reads ids from left to right and names, for each, its own
place and the place of the token after it. Both follow from the ids read so far (and from the known
geometry of masked image spans), never from what comes: training feeds a whole row, sampling feeds
the prompt and then one id at a time, through the same function.

* Image code at grid index g: `image_base + g`, whatever was masked; the next is `image_base+g+1`,
  also where a span ends there.
* Text token: its index in the visible caption, where a sentinel takes one place, so that no place
  tells the length of a masked span; the next is own + 1, also where the caption ends. Captions
  longer than the table stay on its last place.
* A sentinel stands at the start of its span. In the source the place after it is UNKNOWN for text
  and the grid index where the image resumes for images; in the tail it is the start of the span,
  from which the masked tokens count on.
* `<break>`, `</s>` and `<eoss>` stand at places of their own. After the break that closes a caption
  comes `image_base` (also in a context that is fed without its image, whose next token is another
  break), after one that closes an image `text_base`, after `<eoss>` and the last `</s>` UNKNOWN.

The papers use sequence positions; these are for small models (docs/architecture.md).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from racm3.sequence.batch import Modality
from racm3.vocabulary import Vocabulary

_UNKNOWN, _DOCUMENT_END, _BREAK, _EOSS, _TEXT_BASE = 1, 2, 3, 4, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceTable:
    """The places there are: 0 for padding, the fixed ones, the caption's, the image's."""

    max_text_tokens: int
    """Longest caption in tokens; it has one place more, for what is expected after it."""

    image_tokens: int
    """h*w; the image has one place more, for what is expected after it."""

    @property
    def unknown(self) -> int:
        """Next place where nothing may be told."""
        return _UNKNOWN

    @property
    def text_base(self) -> int:
        """Place of a caption's first token."""
        return _TEXT_BASE

    @property
    def text_last(self) -> int:
        """Last place of a caption."""
        return _TEXT_BASE + self.max_text_tokens

    @property
    def image_base(self) -> int:
        """Place of grid index 0."""
        return self.text_last + 1

    @property
    def image_last(self) -> int:
        """Place after an image's last code."""
        return self.image_base + self.image_tokens

    @property
    def size(self) -> int:
        """Number of places: rows of the embedding."""
        return self.image_last + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Resume:
    """Where the source goes on after a sentinel: known geometry, given by who masks or prompts."""

    modality: Modality
    """TEXT or IMAGE: the segment of the token after the span; a separator counts to the segment
    that it closes."""

    index: int = 0
    """Grid index of that token (h*w for the separator that closes an image). Ignored for text."""

    document: int
    """Index of its document in the order fed (0-based)."""


class Placed(NamedTuple):
    """Places and slots of the ids fed, each int64 of their length."""

    own: NDArray[np.int64]
    next: NDArray[np.int64]
    slots: NDArray[np.int64]


class PlaceCursor:
    """Reads one row from left to right. Feeding it in pieces gives what feeding it whole gives.

    A leading `</s>` counts to the first document, a separator to the document that it closes,
    `<eoss>` to the document of the token before it.
    """

    def __init__(
        self,
        table: PlaceTable,
        vocabulary: Vocabulary,
        *,
        num_contexts: int,
        resumes: Sequence[Resume] = (),
    ) -> None:
        """Starts before the leading `</s>`; `resumes[i]` belongs to `<sentinel:i>`.

        A sentinel without an entry resumes in the caption in which it stands.
        """
        self._table = table
        self._vocabulary = vocabulary
        self._num_contexts = num_contexts
        self._resumes = resumes
        self._started = False
        self._in_image = False
        self._expected = table.text_base
        self._document = 0
        self._last_slot = self._slot()
        self._span_starts: dict[int, tuple[bool, int, int]] = {}

    def copy(self) -> PlaceCursor:
        """A cursor that goes its own way from here: for several continuations of one prompt."""
        other = copy.copy(self)
        other._span_starts = dict(self._span_starts)
        return other

    def feed(self, ids: ArrayLike) -> Placed:
        """Reads the next ids, shape (L,), and names their places.

        Raises:
            ValueError: when a sentinel masks image codes and no `Resume` says where the image
                goes on.
        """
        ids = np.asarray(ids, dtype=np.int64)
        placed = Placed(*(np.empty(len(ids), dtype=np.int64) for _ in Placed._fields))
        start = 0
        for position in np.flatnonzero(ids < self._vocabulary.text_range.start).tolist():
            self._read_run(placed, start, position)
            token_id = int(ids[position])
            own, following, slot = self._read_special(token_id)
            placed.own[position] = own
            placed.next[position] = following
            placed.slots[position] = self._last_slot = slot
            start = position + 1
        self._read_run(placed, start, len(ids))
        return placed

    def _slot(self) -> int:
        return self._document + 1 if self._document < self._num_contexts else 0

    def _read_run(self, placed: Placed, start: int, stop: int) -> None:
        """Text tokens, or image codes, without a special id among them."""
        if start == stop:
            return
        last = self._table.image_last if self._in_image else self._table.text_last
        steps = np.arange(self._expected, self._expected + stop - start + 1)
        np.minimum(steps, last, out=steps)
        placed.own[start:stop] = steps[:-1]
        placed.next[start:stop] = steps[1:]
        placed.slots[start:stop] = self._last_slot = self._slot()
        self._expected = int(steps[-1])

    def _read_special(self, token_id: int) -> tuple[int, int, int]:
        """Own place, next place and slot of a special id."""
        vocabulary = self._vocabulary
        slot = self._slot()
        if token_id == vocabulary.break_id:
            self._cross_break()
            return _BREAK, self._expected, slot
        if token_id == vocabulary.document_end_id:
            following = _UNKNOWN if self._started else self._table.text_base
            self._started = True
            return _DOCUMENT_END, following, slot
        if token_id == vocabulary.eoss_id:
            return _EOSS, _UNKNOWN, self._last_slot
        if token_id == vocabulary.pad_id:
            return 0, 0, slot
        index = token_id - vocabulary.sentinel_range.start
        if index in self._span_starts:
            self._in_image, self._expected, self._document = self._span_starts[index]
            return self._expected, self._expected, self._slot()
        own = self._expected
        return own, self._skip_span(index), slot

    def _cross_break(self) -> None:
        if self._in_image:
            self._document += 1
        self._in_image = not self._in_image
        self._expected = self._table.image_base if self._in_image else self._table.text_base

    def _skip_span(self, index: int) -> int:
        """Moves to where the source resumes after a sentinel; the place that may be told."""
        self._span_starts[index] = (self._in_image, self._expected, self._document)
        if index < len(self._resumes):
            resume = self._resumes[index]
        elif self._in_image:
            raise ValueError(
                f"<sentinel:{index}> stands in an image: give a Resume with the grid index where "
                "the image goes on"
            )
        else:
            resume = Resume(modality=Modality.TEXT, document=self._document)
        same_caption = not self._in_image and resume.document == self._document
        self._document = resume.document
        self._in_image = resume.modality is Modality.IMAGE
        if self._in_image:
            self._expected = self._table.image_base + resume.index
            return self._expected
        after = self._expected + 1 if same_caption else self._table.text_base + 1
        self._expected = min(after, self._table.text_last)
        return _UNKNOWN
