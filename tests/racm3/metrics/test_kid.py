from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import pytest

from racm3.metrics.bootstrap import resample
from racm3.metrics.kid import (
    cmmd,
    compare_distances,
    distance,
    gaussian_kernel,
    kid,
    polynomial_kernel,
)

X = np.array([[1.0, 0.0], [0.0, 1.0]])
Y = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pairs(n: int, d: int = 4, seed: int = 0):
    """Made images that resemble their own originals."""
    g = rng(seed)
    real = g.normal(size=(n, d))
    return 0.7 * real + 0.7 * g.normal(size=(n, d)) + 0.1, real


def drawn(groups, resamples: int = 50, seed: int = 0):
    return resample([str(one) for one in groups], rng=rng(seed), resamples=resamples)


def reference(x, y, cluster, times, apart: bool) -> float:
    """The weighted estimate, pair by pair."""

    def mean(a, b, same: bool) -> float:
        sums, numbers, counts = [0.0, 0.0], [0.0, 0.0], [0, 0]
        for i, j in itertools.product(range(len(a)), range(len(b))):
            if same and i == j:
                continue
            far = int(cluster[i] != cluster[j])
            times_met = times[cluster[i]] * times[cluster[j]] if far else times[cluster[i]]
            sums[far] += times_met * polynomial_kernel(a[i][None], b[j][None])[0, 0]
            numbers[far] += times_met
            counts[far] += 1
        share = 0.0 if apart else counts[0] / sum(counts)
        near = sums[0] / numbers[0] if share else 0.0
        return share * near + (1.0 - share) * sums[1] / numbers[1]

    return mean(x, x, True) + mean(y, y, True) - 2.0 * mean(x, y, False)


def test_polynomial_kernel_by_hand():
    assert polynomial_kernel(X, Y).tolist() == [[1.5**3, 2.0**3, 1.0], [1.5**3, 1.0, 1.0]]


def test_gaussian_kernel_by_hand():
    made = gaussian_kernel(X, Y, sigma=2.0)
    squares = [[1.0, 1.0, 1.0], [1.0, 5.0, 1.0]]
    expected = [[math.exp(-s / 8.0) for s in row] for row in squares]
    np.testing.assert_allclose(made, expected, rtol=1e-12)


def test_kid_by_hand():
    within_x = 1.0  # k((1,0),(0,1)) = (0/2 + 1)**3, both ordered pairs
    within_y = (2.0**3 + 1.0 + 1.0) / 3.0  # (1,1).(2,0)/2+1 = 2; the zero vector gives 1
    across = (1.5**3 + 2.0**3 + 1.0 + 1.5**3 + 1.0 + 1.0) / 6.0
    made = kid(X, Y, features="points")
    assert made.value == pytest.approx(within_x + within_y - 2.0 * across)
    assert (made.n, made.low, made.higher_is_better) == (2, None, False)
    assert "points" in made.protocol


def test_cmmd_by_hand():
    x, y = np.array([[1.0, 0.0], [0.0, 3.0]]), np.array([[-2.0, 0.0], [0.0, -1.0]])
    two, four = math.exp(-2.0 / 200.0), math.exp(-4.0 / 200.0)  # squared distances on the circle
    expected = 1000.0 * (two + two - 2.0 * (four + two + two + four) / 4.0)
    assert cmmd(x, y, features="points").value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("apart", ["all", "apart"])
@pytest.mark.parametrize("groups", [range(14), [i // 2 for i in range(22)], [0, 0, 0, *range(12)]])
def test_values_and_draws_are_those_of_weights_pair_by_pair(groups, apart, monkeypatch):
    monkeypatch.setattr(importlib.import_module("racm3.metrics.kid"), "_ROWS", 4)
    some = drawn(groups, resamples=3)
    x, y = pairs(len(some.cluster))
    made = distance("kid", x, y, features="f", resampling=some, pairs=apart)
    ones = np.ones(some.clusters)
    truth = [reference(x, y, some.cluster, w, apart == "apart") for w in (ones, *some.times)]
    np.testing.assert_allclose([made.score.value, *made.draws], truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [range(12), [i // 2 for i in range(24)]])
def test_several_samples_of_a_prompt_are_as_many_pairs_apart(groups):
    """Pairs of one concept never meet, so a real image may as well stand there several times."""
    some = drawn(groups, resamples=3)
    _, y = pairs(len(some.cluster))
    x, _ = pairs(3 * len(y), seed=5)
    made = distance("kid", x, y, features="f", resampling=some, pairs="apart", samples=3)
    ones, cluster = np.ones(some.clusters), np.repeat(some.cluster, 3)
    truth = [reference(x, np.repeat(y, 3, 0), cluster, w, True) for w in (ones, *some.times)]
    np.testing.assert_allclose([made.score.value, *made.draws], truth, rtol=1e-10, atol=1e-12)


def test_several_samples_of_a_prompt_are_as_many_made_images():
    some = drawn([i // 2 for i in range(30)])
    _, y = pairs(30)
    x, _ = pairs(60, seed=5)
    plain = kid(x, y, features="f").value
    made = distance("kid", x, y, features="f", resampling=some, samples=2)
    assert made.score.value == pytest.approx(plain, rel=1e-9)


def test_all_pairs_is_the_usual_estimate():
    x, y = pairs(30)
    some = drawn([i // 3 for i in range(30)])
    for metric in (kid, cmmd):
        plain = metric(x, y, features="f").value
        assert metric(x, y, features="f", resampling=some).value == pytest.approx(plain, rel=1e-9)


def test_only_pairs_apart_are_unbiased_where_an_image_resembles_its_original():
    """A made image equals its original: the same distribution, whose distance is 0."""
    found = {"all": [], "apart": []}
    for seed in range(100):
        real = rng(seed).normal(size=(20, 3))
        some = drawn(range(20), resamples=1)
        for which, values in found.items():
            one = kid(real, real.copy(), features="f", resampling=some, pairs=which)
            values.append(one.value)
    assert np.mean(found["all"]) < -0.1
    assert abs(np.mean(found["apart"])) < 1e-12  # here even in each sample
    x, y = pairs(400, seed=9)
    some = drawn(range(400), resamples=1)
    many = kid(x, y, features="f", resampling=some, pairs="apart").value
    few = [pairs(20, seed=s) for s in range(10, 210)]
    some = drawn(range(20), resamples=1)
    apart, usual = (
        [kid(a, b, features="f", resampling=some, pairs=which).value for a, b in few]
        for which in ("apart", "all")
    )
    error = np.std(apart) / len(apart) ** 0.5
    assert abs(np.mean(apart) - many) < 4.0 * error
    assert np.mean(usual) < many - 8.0 * error


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Pairs of points of a finite world, whose distance is known exactly."""
    g = rng(1)
    world_x, world_y = g.normal(size=(8, 3)) + 0.8, g.normal(size=(8, 3))
    k = polynomial_kernel
    truth = k(world_x, world_x).mean() + k(world_y, world_y).mean()
    truth -= 2.0 * k(world_x, world_y).mean()
    hits, off = 0, []
    for seed in range(150):
        g = rng(seed)
        chosen = g.integers(8, size=60)
        one = distance(
            "kid",
            world_x[chosen],
            world_y[chosen],
            features="f",
            resampling=drawn(range(60), resamples=300, seed=seed),
            pairs="apart",
        )
        hits += one.score.low <= truth <= one.score.high
        off.append(one.draws.mean() - one.score.value)
    assert 132 <= hits <= 149  # 88 % to 99 %
    assert abs(np.mean(off)) < 0.02 * truth  # the draws are centred


def test_the_comparison_is_in_pairs():
    real = rng().normal(size=(60, 4))
    noise = rng(1).normal(size=(60, 4))
    some = drawn(range(60), resamples=400)
    near, far = (
        distance("kid", real + a * noise + a, real, features="f", resampling=some, pairs="apart")
        for a in (0.9, 1.0)
    )
    difference, ratio = compare_distances(near, far, against="base")
    assert (difference.name, ratio.name) == ("kid_difference", "kid_ratio")
    assert difference.value == pytest.approx(near.score.value - far.score.value)
    assert ratio.value == pytest.approx(near.score.value / far.score.value)
    assert near.score.high > far.score.low  # each for itself tells nothing
    assert difference.low <= difference.value <= difference.high < 0.0
    assert 0.0 < ratio.low <= ratio.value <= ratio.high < 1.0
    same = compare_distances(near, near, against="itself")
    assert [(s.low, s.value, s.high) for s in same] == [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]


def test_there_is_no_ratio_to_a_distance_that_may_be_zero():
    x, y = rng(1).normal(size=(2, 40, 3))
    some = drawn(range(40))
    made = distance("cmmd", x, y, features="f", resampling=some, pairs="apart")
    (difference,) = compare_distances(made, made, against="base")
    assert difference.name == "cmmd_difference"
    assert "no ratio" in difference.protocol


def test_few_clusters_give_no_interval():
    x, y = pairs(30)
    made = distance("kid", x, y, features="f", resampling=drawn([i % 9 for i in range(30)]))
    assert made.score.low is None
    assert compare_distances(made, made, against="base") == []


def test_impossible_inputs_are_refused():
    with pytest.raises(ValueError, match="must be"):
        kid(X, np.zeros((3, 5)), features="f")
    with pytest.raises(ValueError, match="two items"):
        kid(X[:1], Y, features="f")
    with pytest.raises(ValueError, match="needs 1 made for each real"):
        kid(X, Y, features="f", resampling=drawn(range(2)))
    for few in (None, drawn([0, 0])):
        with pytest.raises(ValueError, match="two clusters"):
            kid(X, X, features="f", resampling=few, pairs="apart")
    x, y = pairs(20)
    one, other = (
        distance("kid", x, y, features="f", resampling=drawn(range(20), resamples=n))
        for n in (4, 5)
    )
    with pytest.raises(ValueError, match="same draws"):
        compare_distances(one, other, against="base")
