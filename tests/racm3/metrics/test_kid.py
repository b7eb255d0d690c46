from __future__ import annotations

import math

import numpy as np
import pytest

from racm3.metrics.kid import cmmd, gaussian_kernel, kid, polynomial_kernel, unbiased_mmd2

X = np.array([[1.0, 0.0], [0.0, 1.0]])
Y = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


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
    made = kid(X, Y, features="points", rng=rng(), resamples=0)
    assert made.value == pytest.approx(within_x + within_y - 2.0 * across)
    assert (made.n, made.low, made.higher_is_better) == (2, None, False)
    assert "points" in made.protocol


def test_cmmd_by_hand():
    x, y = np.array([[1.0, 0.0], [0.0, 3.0]]), np.array([[-2.0, 0.0], [0.0, -1.0]])
    two, four = math.exp(-2.0 / 200.0), math.exp(-4.0 / 200.0)  # squared distances on the circle
    expected = 1000.0 * (two + two - 2.0 * (four + two + two + four) / 4.0)
    made = cmmd(x, y, features="points", rng=rng(), resamples=0)
    assert made.value == pytest.approx(expected, rel=1e-9)


def test_unbiased_estimate_averages_to_zero_on_one_distribution():
    draws = [
        kid(g.normal(size=(20, 4)), g.normal(size=(20, 4)), features="f", rng=g, resamples=0).value
        for g in (rng(seed) for seed in range(200))
    ]
    assert abs(np.mean(draws)) < 3.0 * np.std(draws) / len(draws) ** 0.5
    assert min(draws) < 0.0 < max(draws)


@pytest.mark.parametrize("metric", [kid, cmmd])
def test_further_sets_score_worse_and_the_interval_holds_the_value(metric):
    g = rng()
    real = g.normal(size=(60, 8))
    near, far = real + 0.5 * g.normal(size=(60, 8)) + 0.1, g.normal(size=(60, 8)) + 2.0
    scores = [metric(made, real, features="f", rng=g, resamples=20) for made in (near, far)]
    assert scores[0].value < scores[1].value
    assert all(s.low < s.value < s.high for s in scores)


def test_interval_is_a_function_of_the_generator():
    g = rng()
    x, y = g.normal(size=(30, 3)), g.normal(size=(30, 3))
    first = kid(x, y, features="f", rng=rng(5))
    assert first == kid(x, y, features="f", rng=rng(5))
    assert first != kid(x, y, features="f", rng=rng(6))


def test_impossible_inputs_are_refused():
    with pytest.raises(ValueError, match="must be"):
        kid(X, np.zeros((3, 5)), features="f", rng=rng())
    with pytest.raises(ValueError, match="two items"):
        kid(X[:1], Y, features="f", rng=rng())
    with pytest.raises(ValueError, match="subset"):
        kid(X, Y, features="f", rng=rng(), subset=3)
    with pytest.raises(ValueError, match="two items"):
        unbiased_mmd2(np.ones((1, 1)), np.ones((2, 2)), np.ones((1, 2)))
