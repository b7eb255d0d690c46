from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from racm3.objective.masking import mask, to_row, unmask
from racm3.objective.spans import Span, SpanMixConfig, draw_spans
from racm3.sequence.batch import Modality

LAW = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=3)


@st.composite
def cuts(draw):
    """Relative ends of up to four spans."""
    return sorted(draw(st.sets(st.floats(0, 1, exclude_max=True), max_size=8)))


def spans_of(sequence, relative):
    """Disjoint spans inside `[1, L-1)`, crossing whatever lies between."""
    inner = len(sequence.ids) - 2
    edges = sorted({1 + int(r * inner) for r in relative})
    return tuple(Span(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False))


def test_the_form_of_a_masked_sample(layout, make_sequence):
    v, sequence = layout.vocabulary, make_sequence(4)
    masked = mask(sequence, [Span(2, 4), Span(8, 9)], v)
    x, s0, s1 = sequence.ids.tolist(), v.sentinel_id(0), v.sentinel_id(1)
    assert masked.ids.tolist() == [
        *[*x[:2], s0, *x[4:8], s1, *x[9:]],
        *[s0, *x[2:4], v.eoss_id, s1, x[8], v.eoss_id],
    ]
    assert [(r.modality, r.index) for r in masked.resumes] == [
        (Modality.TEXT, 3),
        (Modality.IMAGE, 3),
    ]


@LAW
@given(lengths=LENGTHS, relative=cuts())
def test_unmask_undoes_mask_for_any_spans(layout, make_sequence, lengths, relative):
    sequence = make_sequence(*lengths)
    spans = spans_of(sequence, relative)
    masked = mask(sequence, spans, layout.vocabulary)
    assert unmask(masked.ids, layout.vocabulary).tolist() == sequence.ids.tolist()
    assert len(masked.ids) == len(sequence.ids) + 3 * len(spans)


@LAW
@given(lengths=LENGTHS, seed=st.integers(0, 2**32), limited=st.booleans())
def test_every_token_is_predicted_exactly_once(layout, make_sequence, lengths, seed, limited):
    sequence = make_sequence(*lengths)
    config = SpanMixConfig(poisson_rate=4, break_limited=limited)
    spans = draw_spans(sequence, config, np.random.default_rng(seed)).spans
    masked = mask(sequence, spans, layout.vocabulary)
    row = to_row(sequence, masked, layout, alpha=0.5)
    labels = masked.owners[1:][masked.inserted[1:] == 0]
    assert sorted(labels.tolist()) == list(range(1, len(sequence.ids)))
    assert row.ids[-1] in (layout.vocabulary.eoss_id, layout.vocabulary.document_end_id)


@LAW
@given(lengths=LENGTHS, relative=cuts())
def test_weights_and_slots_move_with_the_tokens(layout, make_sequence, lengths, relative):
    sequence = make_sequence(*lengths)
    spans = spans_of(sequence, relative)
    masked = mask(sequence, spans, layout.vocabulary)
    row = to_row(sequence, masked, layout, alpha=0.25)
    tokens = masked.inserted == 0
    moved = masked.owners[tokens]
    main = sequence.is_main
    assert row.weights[tokens].tolist() == np.where(main, 1, 0.25)[moved].tolist()
    assert row.is_main[tokens].tolist() == main[moved].tolist()
    slots = np.where(main, 0, sequence.documents + 1)
    assert row.slots[tokens].tolist() == slots[moved].tolist()
    sentinels = np.isin(row.ids, layout.vocabulary.sentinel_range)
    assert sentinels.sum() == 2 * len(spans)
    assert not row.weights[sentinels].any()
    endings = row.ids == layout.vocabulary.eoss_id
    last_tokens = [span.stop - 1 for span in spans]
    assert row.weights[endings].tolist() == np.where(main, 1, 0.25)[last_tokens].tolist()
    assert row.slots[endings].tolist() == slots[last_tokens].tolist()


@LAW
@given(lengths=LENGTHS, relative=cuts())
def test_image_codes_keep_their_grid_place_wherever_they_go(
    layout, make_sequence, lengths, relative
):
    sequence = make_sequence(*lengths)
    masked = mask(sequence, spans_of(sequence, relative), layout.vocabulary)
    row = to_row(sequence, masked, layout, alpha=1)
    starts = np.array([segment.start for segment in sequence.segments])
    grid = np.arange(len(sequence.ids)) - starts[sequence.segment_of]
    codes = (row.modality == Modality.IMAGE) & (masked.inserted == 0)
    expected = layout.places.image_base + grid[masked.owners[codes]]
    assert row.places[codes].tolist() == expected.tolist()
    assert row.next_places[codes].tolist() == (expected + 1).tolist()
    assert max(row.places.max(), row.next_places.max()) < layout.places.size


def test_no_spans_change_nothing(layout, make_sequence):
    sequence = make_sequence(2, 3)
    masked = mask(sequence, (), layout.vocabulary)
    assert masked.ids.tolist() == sequence.ids.tolist()
    assert not masked.inserted.any()


@pytest.mark.parametrize(
    "wrong", [[Span(0, 2)], [Span(5, 7), Span(2, 3)], [Span(2, 6), Span(5, 8)], [Span(3, 99)]]
)
def test_spans_that_do_not_fit_are_refused(layout, make_sequence, wrong):
    with pytest.raises(ValueError, match="in order, disjoint and inside"):
        mask(make_sequence(4), wrong, layout.vocabulary)


def test_broken_rows_are_not_unmasked(layout, make_sequence):
    v = layout.vocabulary
    ids = mask(make_sequence(4), [Span(2, 4)], v).ids
    with pytest.raises(ValueError, match="eoss"):
        unmask(ids[:-1], v)
    with pytest.raises(ValueError, match="once in the source"):
        unmask(np.append(ids, v.sentinel_id(0)), v)
