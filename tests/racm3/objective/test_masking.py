from __future__ import annotations

import numpy as np
import pytest

from racm3.objective.masking import mask, to_row, unmask
from racm3.objective.spans import Span, SpanMixConfig, draw_spans
from racm3.sequence.batch import Batch, Modality


def lengths(rng):
    """Of the captions of one to three documents."""
    return rng.integers(0, 13, rng.integers(1, 4)).tolist()


def cut(sequence, rng):
    """Up to seven spans inside [1, L-1), at any place and of any length, side by side too."""
    last = len(sequence.ids) - 1
    edges = np.sort(rng.choice(last, size=2 * rng.integers(0, 7), replace=False)) + 1
    spans = [Span(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    if spans and rng.random() < 0.5 and spans[-1].stop < last:
        spans.append(Span(spans[-1].stop, last))
    return tuple(spans)


def drawn(sequence, rng):
    """Spans as training draws them, more of them."""
    limited = bool(rng.integers(2))
    config = SpanMixConfig(poisson_rate=4, uniform_spans=2, break_limited=limited)
    return draw_spans(sequence, config, rng).spans


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


def test_unmask_undoes_mask(cases, layout, make_sequence):
    for rng in cases:
        sequence = make_sequence(*lengths(rng))
        masked = mask(sequence, cut(sequence, rng), layout.vocabulary)
        assert unmask(masked.ids, layout.vocabulary).tolist() == sequence.ids.tolist()


def test_masking_adds_two_sentinels_and_an_eoss_a_span(cases, layout, make_sequence):
    for rng in cases:
        sequence, v = make_sequence(*lengths(rng)), layout.vocabulary
        spans = cut(sequence, rng)
        ids = mask(sequence, spans, v).ids.tolist()
        assert len(ids) == len(sequence.ids) + 3 * len(spans)
        assert [ids.count(v.sentinel_id(i)) for i in range(len(spans))] == [2] * len(spans)
        assert ids.count(v.eoss_id) == len(spans)
        assert ids[-1] == (v.eoss_id if spans else v.document_end_id)


def test_every_token_is_predicted_exactly_once(cases, layout, make_sequence):
    for rng in cases:
        sequence, v = make_sequence(*lengths(rng)), layout.vocabulary
        masked = mask(sequence, drawn(sequence, rng), v)
        places = masked.owners[1:][masked.inserted[1:] == 0]
        assert sorted(places.tolist()) == list(range(1, len(sequence.ids)))
        batch = Batch.of_rows([to_row(sequence, masked, layout, alpha=0.5)], pad_id=v.pad_id)
        predicted = batch.labels[batch.weights > 0].tolist()
        written = [*sequence.ids[1:].tolist(), *[v.eoss_id] * len(masked.resumes)]
        assert sorted(predicted) == sorted(written)


def test_weights_and_slots_move_with_the_tokens(cases, layout, make_sequence):
    for rng in cases:
        sequence = make_sequence(*lengths(rng))
        spans = cut(sequence, rng)
        masked = mask(sequence, spans, layout.vocabulary)
        row = to_row(sequence, masked, layout, alpha=0.25)
        tokens = masked.inserted == 0
        moved = masked.owners[tokens]
        main = sequence.is_main
        assert row.weights[tokens].tolist() == np.where(main, 1, 0.25)[moved].tolist()
        assert row.is_main[tokens].tolist() == main[moved].tolist()
        slots = np.where(main, 0, sequence.documents + 1)
        assert row.slots[tokens].tolist() == slots[moved].tolist()
        endings = row.ids == layout.vocabulary.eoss_id
        last_tokens = [span.stop - 1 for span in spans]
        assert row.weights[endings].tolist() == np.where(main, 1, 0.25)[last_tokens].tolist()
        assert row.slots[endings].tolist() == slots[last_tokens].tolist()


def test_a_sentinel_is_never_predicted(cases, layout, make_sequence):
    for rng in cases:
        sequence = make_sequence(*lengths(rng))
        spans = cut(sequence, rng)
        row = to_row(sequence, mask(sequence, spans, layout.vocabulary), layout, alpha=0.25)
        sentinels = np.isin(row.ids, layout.vocabulary.sentinel_range)
        assert sentinels.sum() == 2 * len(spans)
        assert not row.weights[sentinels].any()
        assert row.weights[~sentinels].all()


def test_image_codes_keep_their_grid_place_wherever_they_go(cases, layout, make_sequence):
    for rng in cases:
        sequence = make_sequence(*lengths(rng))
        masked = mask(sequence, cut(sequence, rng), layout.vocabulary)
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
    "wrong",
    [
        [Span(0, 2)],
        [Span(5, 7), Span(2, 3)],
        [Span(2, 6), Span(5, 8)],
        [Span(3, 99)],
        [Span(3, 23)],
    ],
)
def test_spans_that_do_not_fit_are_refused(layout, make_sequence, wrong):
    sequence = make_sequence(4)
    assert len(sequence.ids) == 23
    with pytest.raises(ValueError, match="in order, disjoint and inside"):
        mask(sequence, wrong, layout.vocabulary)


def test_more_spans_than_sentinels_are_refused(layout, make_sequence):
    sequence = make_sequence(12, 12)
    spans = [Span(i, i + 1) for i in range(1, 18)]
    with pytest.raises(ValueError, match="the vocabulary has 16"):
        mask(sequence, spans, layout.vocabulary)


def test_broken_rows_are_not_unmasked(layout, make_sequence):
    v = layout.vocabulary
    ids = mask(make_sequence(4), [Span(2, 4)], v).ids
    with pytest.raises(ValueError, match="eoss"):
        unmask(ids[:-1], v)
    two = mask(make_sequence(4), [Span(2, 4), Span(8, 9)], v).ids
    alike = np.where(two == v.sentinel_id(1), v.sentinel_id(0), two)
    for broken in (np.append(ids, v.sentinel_id(0)), alike):
        with pytest.raises(ValueError, match="once in the source"):
            unmask(broken, v)
