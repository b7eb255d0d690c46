from __future__ import annotations

import math
from collections import Counter
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from racm3.document import DocumentTokens
from racm3.objective.spans import SAMPLERS, Span, SpanMixConfig, draw_spans
from racm3.sequence.layout import Layout, lay_out

OFF = dict.fromkeys(SAMPLERS, 0.0)


def only(name, **switches):
    return SpanMixConfig(**{**OFF, name: 1.0}, **switches)


def any_mix(rng):
    """All five samplers, one of them often, every switch either way."""
    return SpanMixConfig(
        **{**dict.fromkeys(SAMPLERS, 0.1), str(rng.choice(SAMPLERS)): 1.0},
        poisson_rate=float(rng.choice([0.5, 1, 6])),
        min_masks=int(rng.integers(2)),
        break_limited=bool(rng.integers(2)),
        mask_contexts=bool(rng.integers(2)),
    )


def test_spans_are_ordered_disjoint_and_not_empty(cases, make_sequence):
    for rng in cases:
        config = any_mix(rng)
        spans = draw_spans(make_sequence(*rng.integers(0, 13, rng.integers(1, 4))), config, rng)
        edges = [edge for span in spans.spans for edge in (span.start, span.stop)]
        assert edges == sorted(edges)
        assert all(span.start < span.stop for span in spans.spans)
        assert len(edges) <= 2 * config.most_spans


def test_no_span_leaves_its_sample(cases, layout, make_sequence):
    end = layout.vocabulary.document_end_id
    for rng in cases:
        sequence, config = make_sequence(*rng.integers(0, 13, rng.integers(1, 4))), any_mix(rng)
        for span in draw_spans(sequence, config, rng).spans:
            assert 0 < span.start < span.stop < len(sequence.ids)
            assert end not in sequence.ids[span.start : span.stop]


def test_limited_spans_keep_to_one_segment(cases, make_sequence):
    for rng in cases:
        config = replace(any_mix(rng), break_limited=True)
        sequence = make_sequence(*rng.integers(0, 13, rng.integers(1, 4)))
        for span in draw_spans(sequence, config, rng).spans:
            inside = [s.start <= span.start < span.stop <= s.stop for s in sequence.segments]
            assert sum(inside) == 1


def test_equal_generators_draw_alike(cases, make_sequence):
    for rng in cases:
        config, sequence = any_mix(rng), make_sequence(*rng.integers(0, 13, rng.integers(1, 4)))
        twin = deepcopy(rng)
        assert draw_spans(sequence, config, rng) == draw_spans(sequence, config, twin)


def test_free_spans_do_cross_breaks(make_sequence):
    sequence, rng = make_sequence(5, 5), np.random.default_rng(0)
    config = only("uniform_spans", min_masks=1, break_limited=False)
    draws = [draw_spans(sequence, config, rng).spans for _ in range(50)]
    crossing = [
        span
        for spans in draws
        for span in spans
        if sequence.segment_of[span.start] != sequence.segment_of[span.stop - 1]
    ]
    assert len(crossing) > 10


def test_whole_segments_are_the_main_documents(make_sequence):
    sequence, rng = make_sequence(3, 4), np.random.default_rng(0)
    caption, image = sequence.main_segments
    assert draw_spans(sequence, only("whole_caption"), rng).spans == (
        Span(caption.start, caption.stop),
    )
    assert draw_spans(sequence, only("whole_image"), rng).spans == (Span(image.start, image.stop),)
    for _ in range(50):
        (span,) = draw_spans(sequence, only("image_span"), rng).spans
        assert image.start <= span.start < span.stop <= image.stop


def test_an_empty_caption_gives_no_span(make_sequence):
    draw = draw_spans(make_sequence(3, 0), only("whole_caption"), np.random.default_rng(0))
    assert draw.sampler == "whole_caption"
    assert draw.spans == ()


def test_contexts_can_be_left_alone(make_sequence):
    sequence, rng = make_sequence(5, 5, 5), np.random.default_rng(0)
    for mask_contexts in (True, False):
        config = only("uniform_spans", min_masks=2, mask_contexts=mask_contexts)
        starts = [s.start for _ in range(100) for s in draw_spans(sequence, config, rng).spans]
        assert (min(starts) < sequence.main_segments[0].start) == mask_contexts


def test_samplers_come_as_often_as_their_weights_say(make_sequence):
    sequence, rng = make_sequence(4), np.random.default_rng(3)
    config = SpanMixConfig()
    assert sum(config.probabilities.values()) == pytest.approx(1)
    draws = 10_000
    drawn = Counter(draw_spans(sequence, config, rng).sampler for _ in range(draws))
    for name, probability in config.probabilities.items():
        error = math.sqrt(probability * (1 - probability) / draws)
        assert drawn[name] / draws == pytest.approx(probability, abs=5 * error)
    doubled = SpanMixConfig(**{name: 2 * p for name, p in config.probabilities.items()})
    assert doubled.probabilities == pytest.approx(config.probabilities)


@pytest.mark.parametrize(
    ("min_masks", "counts", "moved"),
    [
        (1, (0.0001, 0.818, 0.142, 0.033, 0.006), 0.372),
        (0, (0.368, 0.450, 0.142, 0.034, 0.006), 0.250),
    ],
)
def test_uniform_spans_have_the_statistics_of_the_code_base(layout, min_masks, counts, moved):
    """Against a simulation of CM3's algorithm: 2,048 tokens, 200,000 draws, three decimals.

    20,000 draws of ours: each share within five standard errors of both.
    """
    draws = 20_000
    wide = Layout(vocabulary=layout.vocabulary, image_tokens=2040, max_text_tokens=12)
    sequence = lay_out(DocumentTokens(text=(1,) * 5, image=(1,) * 2040), [], wide)
    assert len(sequence.ids) == 2048
    config = only("uniform_spans", min_masks=min_masks, break_limited=False)
    rng = np.random.default_rng(0)
    found = [draw_spans(sequence, config, rng).spans for _ in range(draws)]
    seen = Counter(map(len, found))
    for number, share in enumerate(counts):
        error = math.sqrt(share * (1 - share) * (1 / draws + 1 / 200_000))
        assert seen[number] / draws == pytest.approx(share, abs=5 * error + 0.0005)
    covered = np.array([sum(s.stop - s.start for s in spans) for spans in found])
    error = covered.std() * math.sqrt(1 / draws + 1 / 200_000)
    assert covered.mean() / 2048 == pytest.approx(moved, abs=5 * error / 2048 + 0.0005)


def test_room_that_a_row_must_reserve():
    assert SpanMixConfig().most_spans == 16
    assert only("image_span").most_spans == 1
    assert only("none").most_spans == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"none": -0.1},
        {"whole_image": float("nan")},
        OFF,
        {"min_masks": 5, "max_masks": 4},
        {"max_masks": 0},
        {"poisson_rate": float("inf")},
    ],
)
def test_a_wrong_mix_is_refused(wrong):
    with pytest.raises(ValueError, match="SpanMixConfig"):
        SpanMixConfig(**wrong)


def test_an_empty_span_is_refused():
    with pytest.raises(ValueError, match="start < stop"):
        Span(3, 3)
