from __future__ import annotations

import numpy as np
import pytest

from racm3.metrics.bootstrap import paired_bootstrap, ratio_bootstrap


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
    return ratio_bootstrap(np.array(a), np.array(b), groups, rng=np.random.default_rng(0))


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
