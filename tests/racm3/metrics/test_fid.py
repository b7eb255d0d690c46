from __future__ import annotations

import numpy as np
import pytest

from racm3.metrics.fid import fid, frechet_distance


def with_moments(n: int, mean, root, seed: int = 0):
    """n points whose mean and covariance (n - 1 degrees of freedom) are exactly those given."""
    d = len(mean)
    x = np.random.default_rng(seed).normal(size=(n, d))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return white @ np.asarray(root).T + mean


def test_diagonal_covariances_by_hand():
    x = with_moments(50, [0.0, 1.0, 2.0], np.diag([1.0, 2.0, 3.0]))
    y = with_moments(70, [1.0, 1.0, 0.0], np.diag([4.0, 2.0, 1.0]), seed=1)
    # |mu|^2 = 1 + 4; with equal axes the rest is the sum of squared differences of deviations
    assert frechet_distance(x, y) == pytest.approx(5.0 + 9.0 + 0.0 + 4.0)


def test_general_covariances_agree_with_the_eigenvalues_of_their_product():
    g = np.random.default_rng(2)
    x, y = g.normal(size=(40, 5)) @ g.normal(size=(5, 5)), g.normal(size=(60, 5)) + 0.3
    a, b = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).sum().real
    truth = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b) - 2.0 * root
    assert frechet_distance(x, y) == pytest.approx(truth, rel=1e-9)


def test_laws():
    g = np.random.default_rng(3)
    x, y = g.normal(size=(30, 6)), 2.0 * g.normal(size=(25, 6)) + 1.0
    turn, _ = np.linalg.qr(g.normal(size=(6, 6)))
    value = frechet_distance(x, y)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(y, x) == pytest.approx(value)
    assert frechet_distance(x @ turn + 5.0, y @ turn + 5.0) == pytest.approx(value)
    assert frechet_distance(3.0 * x, 3.0 * y) == pytest.approx(9.0 * value)
    assert frechet_distance(x, x + 2.0) == pytest.approx(6 * 4.0)


@pytest.mark.parametrize("n", [3, 8, 40])
def test_fewer_items_than_features_is_the_same_distance(n):
    """Features that are all 0 change nothing, whichever side of the rank they fall on."""
    g = np.random.default_rng(4)
    x, y = g.normal(size=(n, 3)), g.normal(size=(n, 3)) * 2.0
    wide = [np.pad(one, ((0, 0), (0, 17))) for one in (x, y)]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(x, y), rel=1e-9)


def test_float32_features_of_large_mean_keep_their_digits():
    g = np.random.default_rng(5)
    x, y = (g.normal(size=(200, 8)).astype(np.float32) + np.float32(1000.0) for _ in range(2))
    exact = frechet_distance(x.astype(np.float64) - 1000.0, y.astype(np.float64) - 1000.0)
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-6)


def test_the_protocol_says_what_it_is_worth():
    g = np.random.default_rng(6)
    few = fid(g.normal(size=(10, 12)), g.normal(size=(30, 12)), features="points")
    many = fid(g.normal(size=(13, 12)), g.normal(size=(30, 12)), features="points")
    assert "rank-deficient: 10 images" in few.protocol
    assert "rank-deficient" not in many.protocol
    assert (many.name, many.n, many.low, many.higher_is_better) == ("fid", 13, None, False)
    assert "points" in many.protocol


def test_impossible_inputs_are_refused():
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match="must be"):
        frechet_distance(x, np.zeros((3, 4)))
    with pytest.raises(ValueError, match="two items"):
        frechet_distance(x[:1], x)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(x, x + np.nan)
