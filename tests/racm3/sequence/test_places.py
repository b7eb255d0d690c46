from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.document import DocumentTokens
from racm3.objective.masking import mask
from racm3.objective.spans import SpanMixConfig, draw_spans
from racm3.sequence.batch import Modality
from racm3.sequence.layout import Layout, lay_out
from racm3.sequence.places import PlaceCursor, PlaceTable, Resume
from racm3.vocabulary import Vocabulary

V = Vocabulary(8, 4, num_sentinels=3)
TABLE = PlaceTable(max_text_tokens=6, image_tokens=4)
END, BREAK, EOSS = V.document_end_id, V.break_id, V.eoss_id
T, G = TABLE.text_base, TABLE.image_base
UNKNOWN = TABLE.unknown


def text(count):
    return [V.to_text_id(t % 8) for t in range(count)]


def image(count):
    return [V.to_image_id(c % 4) for c in range(count)]


def sentinel(index=0):
    return V.sentinel_id(index)


def cursor(num_contexts=0, *resumes):
    return PlaceCursor(TABLE, V, num_contexts=num_contexts, resumes=resumes)


def place(ids, *resumes, num_contexts=0):
    return cursor(num_contexts, *resumes).feed(ids)


def in_image(index, document=0):
    return Resume(modality=Modality.IMAGE, index=index, document=document)


IN_CAPTION = Resume(modality=Modality.TEXT, document=0)


def test_places_of_two_documents():
    document = [*text(2), BREAK, *image(4)]
    own, following, slots = place([END, *document, BREAK, *document, END], num_contexts=1)
    grid = [G, G + 1, G + 2, G + 3]
    first = own[1:8].tolist()
    assert first[:2] + first[3:] == [T, T + 1, *grid]
    assert own[9:16].tolist() == first
    assert following.tolist() == [
        *[T, T + 1, T + 2, *grid, G + 4],
        *[T, T + 1, T + 2, *grid, G + 4, UNKNOWN],
    ]
    assert slots.tolist() == [1] * 9 + [0] * 8


def test_masked_caption():
    ids = [END, sentinel(), BREAK, *image(4), END, sentinel(), *text(3), EOSS]
    own, following, _ = place(ids, IN_CAPTION)
    assert (own[1], following[1]) == (T, UNKNOWN)
    assert following[2] == G
    assert own[3:7].tolist() == [G, G + 1, G + 2, G + 3]
    assert (own[8], following[8]) == (T, T)
    assert own[9:12].tolist() == [T, T + 1, T + 2]
    assert following[9:].tolist() == [T + 1, T + 2, T + 3, UNKNOWN]


def test_masked_image_span_keeps_the_grid():
    codes = image(4)
    ids = [END, *text(1), BREAK, codes[0], sentinel(), codes[3], END]
    ids += [sentinel(), codes[1], codes[2], EOSS]
    own, following, _ = place(ids, in_image(3))
    assert own[3:6].tolist() == [G, G + 1, G + 3]
    assert following[3:6].tolist() == [G + 1, G + 3, G + 4]
    assert own[7:10].tolist() == [G + 1, G + 1, G + 2]
    assert following[7:11].tolist() == [G + 1, G + 2, G + 3, UNKNOWN]


@given(before=st.integers(0, 2), masked=st.integers(1, 3), after=st.integers(0, 2))
def test_visible_places_do_not_tell_the_length_of_a_masked_caption_span(before, masked, after):
    def source(length):
        visible = [END, *text(before), sentinel(), *text(after), BREAK, *image(4), END]
        placed = place([*visible, sentinel(), *text(length), EOSS], IN_CAPTION)
        return [array[: len(visible)].tolist() for array in placed]

    assert source(masked) == source(masked + 1)


@given(count=st.integers(1, 5))
def test_the_last_caption_token_expects_what_it_would_if_the_caption_went_on(count):
    ends = place([END, *text(count), BREAK])
    goes_on = place([END, *text(count + 1)])
    assert ends.next[count] == goes_on.next[count] == goes_on.own[count + 1]


@given(count=st.integers(1, 3))
def test_eoss_is_not_announced(count):
    start = [END, *text(1), BREAK, sentinel(), END, sentinel()]
    ends = place([*start, *image(count), EOSS], in_image(4))
    goes_on = place([*start, *image(count + 1)], in_image(4))
    last = len(start) + count - 1
    assert ends.next[last] == goes_on.next[last] == goes_on.own[last + 1]


def test_text_and_image_tokens_stand_where_the_one_before_expected_them():
    ids = [END, *text(3), BREAK, *image(4), BREAK, *text(2), BREAK, *image(4), END]
    own, following, _ = place(ids, num_contexts=1)
    ordinary = np.flatnonzero(np.array(ids[1:]) >= V.text_range.start)
    assert (own[1:][ordinary] == following[:-1][ordinary]).all()


def masked_sample(rng):
    """One to three documents with any spans masked, across breaks too."""
    layout = Layout(vocabulary=V, image_tokens=4, max_text_tokens=6)
    documents = [
        DocumentTokens(
            text=tuple(rng.integers(0, 8, rng.integers(0, 9)).tolist()),
            image=tuple(rng.integers(0, 4, 4).tolist()),
        )
        for _ in range(rng.integers(1, 4))
    ]
    sequence = lay_out(documents[0], documents[1:], layout)
    config = SpanMixConfig(
        uniform_spans=1, poisson_rate=3, max_masks=3, break_limited=bool(rng.integers(2))
    )
    masked = mask(sequence, draw_spans(sequence, config, rng).spans, V)
    return masked, PlaceCursor(TABLE, V, num_contexts=sequence.num_contexts, resumes=masked.resumes)


def test_pieces_give_what_the_whole_gives(cases):
    for rng in cases:
        masked, start = masked_sample(rng)
        whole = start.copy().feed(masked.ids)
        edges = np.sort(rng.integers(0, len(masked.ids) + 1, rng.integers(0, 6)))
        if rng.random() < 0.1:
            edges = np.arange(len(masked.ids))
        cursor, parts = start, []
        for piece in np.split(masked.ids, edges):
            parts.append(cursor.feed(piece))
            cursor = cursor.copy()
        for name, part in zip(whole._fields, zip(*parts, strict=True), strict=True):
            assert np.concatenate(part).tolist() == getattr(whole, name).tolist()


def test_a_copied_cursor_goes_its_own_way(cases):
    for rng in cases:
        masked, cursor = masked_sample(rng)
        whole = cursor.copy().feed(masked.ids)
        at = int(rng.integers(len(masked.ids)))
        cursor.feed(masked.ids[:at])
        cursor.copy().feed(masked.ids[at:])
        assert cursor.feed(masked.ids[at:]).own.tolist() == whole.own[at:].tolist()


def test_slots_follow_the_spans_to_the_tail():
    ids = [END, sentinel(), BREAK, *image(4), BREAK, *text(1), BREAK, sentinel(1), END]
    ids += [sentinel(), *text(2), EOSS, sentinel(1), *image(4), EOSS]
    slots = place(ids, IN_CAPTION, in_image(4, document=1), num_contexts=1).slots
    assert slots.tolist() == [1] * 8 + [0] * 4 + [1] * 4 + [0] * 6


def test_a_span_may_cross_a_break():
    codes = image(4)
    ids = [END, *text(1), sentinel(), codes[2], codes[3], END]
    ids += [sentinel(), *text(2), BREAK, *codes[:2], EOSS]
    own, following, _ = place(ids, in_image(2))
    assert own[1:5].tolist() == [T, T + 1, G + 2, G + 3]
    assert own[6:9].tolist() == [T + 1, T + 1, T + 2]
    assert following[9] == G
    assert own[10:12].tolist() == [G, G + 1]


def test_too_long_captions_stay_on_the_last_place():
    own, following, _ = place([END, *text(9)])
    assert own.max() == following.max() == TABLE.text_last < TABLE.image_base


def test_all_places_are_in_the_table():
    own, following, _ = place([END, *text(6), BREAK, *image(4), END])
    assert max(own.max(), following.max()) == TABLE.size - 1
    assert min(own.min(), following.min()) > 0


def test_a_masked_image_needs_its_geometry():
    with pytest.raises(ValueError, match="grid index"):
        place([END, *text(1), BREAK, sentinel()])
