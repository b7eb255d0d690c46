from __future__ import annotations

import numpy as np
import pytest

from racm3.metrics.bootstrap import (
    gain_score,
    paired_bootstrap,
    ratio_bootstrap,
    resample,
    with_interval,
)
from racm3.metrics.score import mean_score


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_point_estimates_by_hand():
    a, b = np.array([2.0, 6.0]), np.array([4.0, 8.0])
    made = paired_bootstrap(a, b, np.array([1, 3]), ["x", "y"], rng=rng())
    assert made.difference == pytest.approx(-1.0)  # (8 - 12) / 4 tokens
    assert made.ratio == pytest.approx(np.exp(8 / 4) / np.exp(12 / 4))
    assert (made.n, made.groups) == (2, 2)
    # either group alone, or both: -2, -1 or -2/3
    assert made.difference_low == pytest.approx(-2.0)
    assert made.difference_high == pytest.approx(-2.0 / 3.0)
    assert made.ratio_low == pytest.approx(np.exp(-2.0))


def test_one_group_has_no_width():
    made = paired_bootstrap(
        np.array([1.0, 5.0]), np.array([2.0, 2.0]), np.array([1, 1]), ["g", "g"], rng=rng()
    )
    assert made.difference_low == made.difference == made.difference_high


def test_clusters_widen_the_interval():
    g = rng()
    effect = np.repeat(g.normal(size=30), 10)
    base = np.zeros(300)
    tokens = np.ones(300, dtype=np.int64)
    clustered = paired_bootstrap(
        effect, base, tokens, [f"g{i // 10}" for i in range(300)], rng=rng()
    )
    single = paired_bootstrap(effect, base, tokens, [str(i) for i in range(300)], rng=rng())
    assert clustered.difference == single.difference
    width = clustered.difference_high - clustered.difference_low
    assert width > 2.0 * (single.difference_high - single.difference_low)


def test_interval_covers_the_truth_as_often_as_it_says():
    tokens, groups = np.ones(60, dtype=np.int64), [str(i) for i in range(60)]
    hits = 0
    for seed in range(200):
        g = rng(seed)
        made = paired_bootstrap(
            g.normal(0.3, 1.0, 60), np.zeros(60), tokens, groups, rng=g, resamples=300
        )
        hits += made.difference_low <= 0.3 <= made.difference_high
    assert 180 <= hits <= 198


def test_it_is_a_function_of_the_generator():
    g = rng()
    arguments = (
        g.normal(size=20),
        g.normal(size=20),
        np.arange(1, 21),
        [str(i) for i in range(20)],
    )
    assert paired_bootstrap(*arguments, rng=rng(1)) == paired_bootstrap(*arguments, rng=rng(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": ["x"]}, "equal lengths"),
        ({"nll_a": np.array([np.nan, 1.0])}, "not finite"),
        ({"tokens": np.array([1, 0])}, "no tokens"),
        ({"level": 1.0}, "level"),
    ],
)
def test_impossible_inputs_are_refused(changes, message):
    values = {
        "nll_a": np.ones(2),
        "nll_b": np.ones(2),
        "tokens": np.array([1, 1]),
        "groups": ["x", "y"],
    }
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(**{**values, **changes}, rng=rng())


def ratio(a, b, groups=None):
    groups = groups or [str(i) for i in range(len(a))]
    drawn = resample(groups, rng=np.random.default_rng(0), resamples=2000)
    return ratio_bootstrap(np.array(a), np.array(b), drawn)


def test_a_constant_factor_is_found_without_doubt():
    b = np.random.default_rng(1).random(50)
    result = ratio(2.5 * b, b)
    assert (result.ratio, result.low, result.high) == pytest.approx((2.5, 2.5, 2.5))


def test_the_ratio_is_of_means_and_stands_in_its_interval():
    rng = np.random.default_rng(2)
    a, b = rng.random(200) + 0.5, rng.random(200)
    result = ratio(a, b)
    assert result.ratio == pytest.approx(a.mean() / b.mean())
    assert result.low < result.ratio < result.high


def test_clusters_are_resampled_whole():
    rng = np.random.default_rng(3)
    a, b = rng.random(20), rng.random(20) + 0.1
    lone = ratio(a, b)
    twins = ratio(np.repeat(a, 9), np.repeat(b, 9), [str(i // 9) for i in range(180)])
    assert (twins.high - twins.low) == pytest.approx(lone.high - lone.low, rel=0.2)


# --- draws ----------------------------------------------------------------------------------


def test_each_draw_takes_as_many_clusters_as_there_are():
    drawn = resample(["b", "a", "b", "c"], rng=rng(), resamples=300)
    assert (drawn.clusters, drawn.resamples) == (3, 300)
    assert drawn.cluster.tolist() == [1, 0, 1, 2]
    assert (drawn.times.sum(1) == 3).all()
    assert drawn.times.mean(0) == pytest.approx([1.0, 1.0, 1.0], abs=0.2)


def test_sums_and_means_are_those_of_the_items_drawn():
    values, groups = np.array([1.0, 10.0, 100.0, 1000.0]), ["b", "a", "b", "c"]
    drawn = resample(groups, rng=rng(1), resamples=20)
    for times, total, mean in zip(
        drawn.times, drawn.sums(values), drawn.means(values), strict=True
    ):
        items = [
            v for v, c in zip(values, drawn.cluster, strict=True) for _ in range(int(times[c]))
        ]
        assert total == pytest.approx(sum(items))
        assert mean == pytest.approx(np.mean(items))


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="0 items"):
        resample([], rng=rng(), resamples=5)
    with pytest.raises(ValueError, match="0 draws"):
        resample(["a"], rng=rng(), resamples=0)


def test_a_mean_of_independent_items_has_the_usual_interval():
    values = rng(2).normal(size=400)
    score = mean_score(values.tolist(), name="m", unit="", higher_is_better=True, protocol="p")
    drawn = resample([str(i) for i in range(400)], rng=rng(), resamples=4000)
    made = with_interval(score, values, drawn)
    assert (made.value, made.n) == (score.value, score.n)
    assert (made.low, made.high) == pytest.approx((score.low, score.high), abs=0.01)
    assert made.protocol == "p; bootstrap over 400 concepts, 4000 draws"


def test_a_gain_is_paired():
    base = rng(3).normal(size=200) * 10.0
    ours = base + 1.0 + 0.1 * rng(4).normal(size=200)
    drawn = resample([str(i) for i in range(200)], rng=rng(), resamples=500)
    made = gain_score(ours, base, drawn, name="x_gain", protocol="p")
    assert made.value == pytest.approx(1.0, abs=0.03)
    assert made.high - made.low < 0.05  # that of a mean alone is 2.8
    assert (made.name, made.higher_is_better) == ("x_gain", True)
