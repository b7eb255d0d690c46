import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from racm3.metrics.bootstrap import resample
from racm3.metrics.few_shot import (
    Member,
    categories_of,
    draw_trials,
    few_shot_accuracy,
    few_shot_gain,
    trial_accuracy,
)


def members(sizes, tones=2):
    """Categories of so many concepts, each of `tones` documents."""
    return [
        Member(document_id=f"{name}{n}-{tone}", category=name, concept=f"{name}{n}")
        for name, size in sizes.items()
        for n in range(size)
        for tone in range(tones)
    ]


MEMBERS = members({"a": 6, "b": 4, "c": 5, "d": 3})


@pytest.mark.parametrize("k", [1, 2, 3])
def test_laws_of_the_trials(k):
    place = {one.document_id: one for one in MEMBERS}
    trials = draw_trials(MEMBERS, k=k, count=120, seed=3)
    for trial in trials:
        shown = [place[name] for pair in trial.demonstrations for name in pair]
        assert len(trial.demonstrations) == k
        assert [one.category for one in shown] == list(trial.classes) * k
        asked = place[trial.asked]
        assert asked.category == trial.classes[trial.truth]
        assert asked.concept == trial.cluster
        assert len({one.concept for one in (*shown, asked)}) == 2 * k + 1, "no relatives"
    pairs = Counter(frozenset(trial.classes) for trial in trials)
    assert len(pairs) == math.comb(len(categories_of(MEMBERS, k)), 2)
    assert max(pairs.values()) - min(pairs.values()) <= 1, "evenly over pairs"
    assert Counter(trial.truth for trial in trials) == {0: 60, 1: 60}, "labels are balanced"
    asked = Counter(trial.classes[trial.truth] for trial in trials)
    assert min(asked.values()) > 120 / len(asked) / 2


def test_laws_of_trials_that_show_what_others_made():
    asked = members({"a": 3, "b": 1, "c": 2, "e": 9})
    theirs = [replace(one, document_id=f"by others {one.document_id}") for one in MEMBERS]
    mine = {one.document_id: one for one in asked}
    place = {one.document_id: one for one in theirs}
    assert categories_of(asked, 3, shown=theirs) == ["a", "b", "c"], "d is not asked, e not shown"
    trials = draw_trials(asked, k=3, count=120, seed=3, shown=theirs)
    for trial in trials:
        shown = [place[name] for pair in trial.demonstrations for name in pair]
        one = mine[trial.asked]
        assert [other.category for other in shown] == list(trial.classes) * 3
        assert (one.category, one.concept) == (trial.classes[trial.truth], trial.cluster)
        assert len({other.concept for other in (*shown, one)}) == 7, "no relatives"
    assert {mine[trial.asked].concept for trial in trials} == {"a0", "a1", "a2", "b0", "c0", "c1"}
    assert {name for t in trials for pair in t.demonstrations for name in pair} == {
        one.document_id for one in theirs if one.category != "d" and one.concept != "b0"
    }, "the only one that is asked of its category is never shown"
    assert draw_trials(asked, k=3, count=7, seed=3, shown=theirs) == trials[:7]
    both = [*theirs, Member(document_id="x", category="a", concept="b0")]
    assert categories_of(asked, 3, shown=both) == ["a", "c"], "b0 is of two categories"


def test_a_trial_depends_on_nothing_but_members_k_seed_and_its_number():
    few, many = (draw_trials(MEMBERS[::-1], k=2, count=n, seed=1) for n in (7, 40))
    assert many[:7] == few == draw_trials(MEMBERS, k=2, count=7, seed=1)
    assert draw_trials(MEMBERS, k=2, count=7, seed=2) != few


def test_small_categories_and_ambiguous_concepts_are_left_out():
    assert categories_of(MEMBERS, 3) == ["a", "b", "c"]
    both = [*MEMBERS, Member(document_id="x", category="a", concept="b0")]
    assert categories_of(both, 3) == ["a", "c"]
    with pytest.raises(ValueError, match="more than 5"):
        draw_trials(MEMBERS, k=5, count=1, seed=0)


def test_a_tie_counts_by_its_share():
    found = trial_accuracy(np.array([[0.7, 0.3], [0.7, 0.3], [0.5, 0.5]]), [0, 1, 1])
    assert found.tolist() == [1, 0, 0.5]


def test_accuracy_and_gain_are_means_with_intervals_over_concepts():
    rng = np.random.default_rng(0)
    ours = (rng.random(400) < 0.8).astype(float)
    base = (rng.random(400) < 0.5).astype(float)
    apart = [str(n) for n in range(400)]

    def score(values, clusters):
        return few_shot_accuracy(values, drawn(clusters), protocol="p")

    def drawn(clusters):
        return resample(clusters, rng=np.random.default_rng(1), resamples=2000)

    one = score(ours, apart)
    assert one.value == pytest.approx(ours.mean())
    assert (one.n, one.unit, one.protocol[:3]) == (400, "fraction", "p; ")
    wald = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert one.high - one.low == pytest.approx(2 * wald, rel=0.15)
    fourfold = score(np.repeat(ours[:100], 4), [str(n // 4) for n in range(400)])
    assert fourfold.high - fourfold.low == pytest.approx(4 * wald, rel=0.25), "100 concepts"
    gain = few_shot_gain(ours, base, drawn(apart), protocol="p")
    assert gain.value == pytest.approx(ours.mean() - base.mean())
    assert 0.1 < gain.low < gain.value < gain.high < 0.5
    nothing = few_shot_gain(ours, ours, drawn(apart), protocol="p")
    assert (nothing.low, nothing.value, nothing.high) == (0, 0, 0)
