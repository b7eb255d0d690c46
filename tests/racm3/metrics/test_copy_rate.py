from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from racm3.metrics import context_agreement, copy_rate
from racm3.metrics.copy_rate import code_agreement, feature_agreement


def test_agreement_is_with_the_nearest_context():
    contexts = np.array([[1, 2, 3, 4], [9, 9, 9, 4]])
    made = np.array([[1, 2, 3, 4], [1, 2, 0, 0], [9, 9, 0, 4], [0, 0, 0, 0]])
    assert code_agreement(made, contexts).tolist() == [1.0, 0.5, 0.75, 0.0]
    features = np.eye(3, dtype=np.float32)
    asked = np.array([[2, 0, 0], [3, 4, 0]], np.float32)
    np.testing.assert_allclose(feature_agreement(asked, features[:2]), [1.0, 0.8])


def test_more_contexts_never_take_closeness_away():
    rng = np.random.default_rng(0)
    for _ in range(100):
        made, contexts = rng.integers(0, 4, (3, 10)), rng.integers(0, 4, (4, 10))
        values = [code_agreement(made, contexts[:k]) for k in range(1, 5)]
        assert all((a <= b).all() for a, b in pairwise(values))
        assert (code_agreement(contexts, contexts) == 1).all()
        brute = [[(m == c).mean() for c in contexts] for m in made]
        np.testing.assert_allclose(values[-1], np.max(brute, axis=1))


def test_rates_average_samples_first_and_count_prompts():
    closeness = [np.array([0.95, 0.2, 0.9, 0.1]), np.array([0.5]), np.array([1.0])]
    rate = copy_rate(closeness, of="codes", threshold=0.9)
    assert (rate.name, rate.n, rate.value) == ("copy_rate_codes", 3, pytest.approx(0.5))
    assert not rate.higher_is_better
    mean = context_agreement(closeness, of="features")
    assert mean.name == "context_agreement_features"
    assert mean.value == pytest.approx((0.5375 + 0.5 + 1.0) / 3)


def test_no_copy_among_few_is_no_proof():
    rate = copy_rate([np.array([0.1])] * 10, of="codes", threshold=0.9)
    assert (rate.value, rate.low) == (0.0, 0.0)
    assert rate.high == pytest.approx(0.2775, abs=1e-4)  # Wilson, 0 of 10


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        code_agreement(np.zeros((1, 3), int), np.zeros((1, 4), int))
    with pytest.raises(ValueError, match="no context"):
        code_agreement(np.zeros((1, 3), int), np.zeros((0, 3), int))
    with pytest.raises(ValueError, match="no context"):
        feature_agreement(np.ones((1, 3), np.float32), np.ones((0, 3), np.float32))
    with pytest.raises(ValueError, match="zero"):
        feature_agreement(np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="shapes"):
        feature_agreement(np.ones((1, 3), np.float32), np.ones(3, np.float32))
