"""Causal masking: spans leave a sentinel behind and move to the end of the sample.

`a b c d </s>` with the span `b c` becomes `a <sentinel:0> d </s> <sentinel:0> b c <eoss>`. With n
spans a sample of L tokens has L + 3n; nothing is cut (the public code cut the tail, and with it
every last `<eoss>`). Weights move with their tokens; a sentinel has weight 0, since its position is
random (CM3 section 2); `<eoss>` has the weight of its span's last token.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from racm3.objective.spans import Span
from racm3.sequence.batch import Modality, Row
from racm3.sequence.layout import Layout, Sequence
from racm3.sequence.places import PlaceCursor, Resume
from racm3.vocabulary import Vocabulary

_TOKEN, _SENTINEL, _EOSS = 0, 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Masked:
    """A sequence after masking; arrays of length L + 3n."""

    ids: NDArray[np.int64]
    owners: NDArray[np.int64]
    """Position before masking; of a sentinel that of its span's first token, of `<eoss>` of the
    last."""

    inserted: NDArray[np.int8]
    """0 a token of the sample, 1 a sentinel, 2 `<eoss>`."""

    resumes: tuple[Resume, ...]
    """Where the source goes on after each sentinel."""


def mask(sequence: Sequence, spans: Series[Span], vocabulary: Vocabulary) -> Masked:
    """Moves the spans to the end.

    Raises:
        ValueError: when spans overlap, are out of order, cover a `</s>`, or outnumber the
            sentinels.
    """
    length = len(sequence.ids)
    _check(spans, length)
    order = np.arange(length)
    source: list[NDArray[np.int64]] = []
    tail: list[NDArray[np.int64]] = []
    position = 0
    for span in spans:
        source += [order[position : span.start + 1]]
        tail += [order[span.start : span.start + 1], order[span.start : span.stop]]
        tail += [order[span.stop - 1 : span.stop]]
        position = span.stop
    owners = np.concatenate([*source, order[position:], *tail])
    ids, inserted = sequence.ids[owners], np.zeros(len(owners), dtype=np.int8)
    in_source, in_tail = -1, length - sum(s.stop - s.start - 1 for s in spans)
    position = 0
    for index, span in enumerate(spans):
        in_source += span.start - position + 1
        position = span.stop
        ends = in_tail + span.stop - span.start + 1
        ids[[in_source, in_tail]] = vocabulary.sentinel_id(index)
        inserted[[in_source, in_tail]] = _SENTINEL
        ids[ends], inserted[ends] = vocabulary.eoss_id, _EOSS
        in_tail = ends + 1
    resumes = tuple(_resume(sequence, span.stop) for span in spans)
    return Masked(ids=ids, owners=owners, inserted=inserted, resumes=resumes)


def unmask(ids: NDArray[np.int64], vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Puts every span back: `unmask(mask(x).ids) == x.ids`. Reads ids only.

    Raises:
        ValueError: when a sentinel has no span, or a span no `<eoss>`.
    """
    sentinels = vocabulary.sentinel_range
    is_sentinel = (ids >= sentinels.start) & (ids < sentinels.stop)
    marks = np.flatnonzero(is_sentinel).tolist()
    count = len(marks) // 2
    starts = {int(ids[mark]): mark for mark in marks[count:]}
    in_source = {int(ids[mark]) for mark in marks[:count]}
    if len(marks) != 2 * count or len(starts) != count or in_source != set(starts):
        raise ValueError("every sentinel must occur once in the source and once in the tail")
    tail = marks[count] if count else len(ids)
    ends = {start: stop - 1 for start, stop in pairwise([*marks[count:], len(ids)])}
    pieces, position = [], 0
    for mark in marks[:count]:
        start = starts[int(ids[mark])]
        if ids[ends[start]] != vocabulary.eoss_id:
            raise ValueError("a span of the tail does not end with <eoss>")
        pieces += [ids[position:mark], ids[start + 1 : ends[start]]]
        position = mark + 1
    return np.concatenate([*pieces, ids[position:tail]])


def to_row(sequence: Sequence, masked: Masked, layout: Layout, *, alpha: float) -> Row:
    """Everything the generator and its loss need of a masked sequence; alpha weighs contexts."""
    vocabulary = layout.vocabulary
    weights = sequence.weights(alpha)[masked.owners]
    weights[masked.inserted == _SENTINEL] = 0
    modality = np.zeros(len(masked.ids), dtype=np.int8)
    modality[masked.ids >= vocabulary.text_range.start] = Modality.TEXT
    modality[masked.ids >= vocabulary.image_range.start] = Modality.IMAGE
    cursor = PlaceCursor(
        layout.places, vocabulary, num_contexts=sequence.num_contexts, resumes=masked.resumes
    )
    placed = cursor.feed(masked.ids)
    return Row(
        ids=masked.ids,
        weights=weights,
        is_main=sequence.is_main[masked.owners],
        modality=modality,
        places=placed.own,
        next_places=placed.next,
        slots=placed.slots,
    )


def hidden(row: Row, spans: Series[Span]) -> Row:
    """A masked row without its tail: the spans stay hidden, and nothing predicts them.

    Args:
        row: as `to_row` gives it.
        spans: that were masked.
    """
    moved = sum(span.stop - span.start + 2 for span in spans)
    stop = len(row.ids) - moved
    arrays = ((field.name, getattr(row, field.name)) for field in fields(row))
    kept: dict[str, Any] = {name: None if one is None else one[:stop] for name, one in arrays}
    return Row(**kept)


def _check(spans: Series[Span], length: int) -> None:
    edges = [1, *(edge for span in spans for edge in (span.start, span.stop)), length - 1]
    if any(left > right for left, right in pairwise(edges)):
        raise ValueError(
            f"spans must be in order, disjoint and inside [1, {length - 1}), not {list(spans)}"
        )


def _resume(sequence: Sequence, position: int) -> Resume:
    segment = sequence.segments[int(sequence.segment_of[position])]
    return Resume(
        modality=segment.modality, index=position - segment.start, document=segment.document
    )
