from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from racm3.document import DocumentTokens
from racm3.objective.spans import SAMPLERS, Span, SpanMixConfig, draw_spans
from racm3.sequence.layout import Layout, lay_out

OFF = dict.fromkeys(SAMPLERS, 0.0)
LAW = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def only(name, **switches):
    return SpanMixConfig(**{**OFF, name: 1.0}, **switches)


@LAW
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
    rate=st.sampled_from([1.0, 6.0]),
    limited=st.booleans(),
)
def test_spans_are_ordered_disjoint_not_empty_and_inside(
    make_sequence, lengths, seed, rate, limited
):
    sequence = make_sequence(*lengths)
    config = SpanMixConfig(poisson_rate=rate, uniform_spans=2, break_limited=limited)
    spans = draw_spans(sequence, config, np.random.default_rng(seed)).spans
    edges = [1, *(edge for span in spans for edge in (span.start, span.stop))]
    assert edges == sorted(edges)
    assert all(span.start < span.stop < len(sequence.ids) for span in spans)
    assert len(spans) <= config.most_spans
    if limited:
        assert all(
            any(s.start <= span.start and span.stop <= s.stop for s in sequence.segments)
            for span in spans
        )


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
    drawn = Counter(draw_spans(sequence, config, rng).sampler for _ in range(4000))
    for name, probability in config.probabilities.items():
        assert drawn[name] / 4000 == pytest.approx(probability, abs=0.035)
    doubled = SpanMixConfig(**{name: 2 * p for name, p in config.probabilities.items()})
    assert doubled.probabilities == pytest.approx(config.probabilities)


@pytest.mark.parametrize(
    ("min_masks", "none", "one", "moved"), [(1, 0.0, 0.818, 0.372), (0, 0.368, 0.450, 0.250)]
)
def test_uniform_spans_have_the_statistics_of_the_code_base(layout, min_masks, none, one, moved):
    """Against an independent simulation of CM3's algorithm at 2,048 tokens."""
    wide = Layout(vocabulary=layout.vocabulary, image_tokens=2040, max_text_tokens=12)
    sequence = lay_out(DocumentTokens(text=(1,) * 5, image=(1,) * 2040), [], wide)
    config = only("uniform_spans", min_masks=min_masks, break_limited=False)
    rng = np.random.default_rng(0)
    draws = [draw_spans(sequence, config, rng).spans for _ in range(6000)]
    counts = Counter(map(len, draws))
    covered = np.mean([sum(s.stop - s.start for s in spans) for spans in draws])
    assert counts[0] / 6000 == pytest.approx(none, abs=0.025)
    assert counts[1] / 6000 == pytest.approx(one, abs=0.025)
    assert covered / len(sequence.ids) == pytest.approx(moved, abs=0.015)


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
