from __future__ import annotations

import numpy as np
import pytest

from racm3.metrics import recall_at_k


def test_recall_by_hand():
    hits = [["a", "b"], ["c"], [], ["d", "e", "f"]]
    relevant = [{"b"}, {"c", "x"}, {"y"}, {"f"}]
    values = {k: recall_at_k(hits, relevant, k) for k in (1, 2, 3)}
    assert [score.value for score in values.values()] == [0.25, 0.5, 0.75]
    assert {score.name for score in values.values()} == {f"recall_at_{k}" for k in (1, 2, 3)}
    assert all(score.n == 4 and score.higher_is_better for score in values.values())


def test_recall_grows_with_k_and_equals_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(200):
        hits = [rng.permutation(12)[: rng.integers(0, 9)].astype(str).tolist() for _ in range(7)]
        relevant = [set(rng.integers(0, 12, rng.integers(1, 4)).astype(str)) for _ in range(7)]
        last = 0.0
        for k in range(1, 10):
            score = recall_at_k(hits, relevant, k)
            found = [
                any(h in right for h in some[:k])
                for some, right in zip(hits, relevant, strict=True)
            ]
            assert score.value == pytest.approx(np.mean(found))
            assert last <= score.value
            assert 0 <= score.low <= score.value <= score.high <= 1
            last = score.value


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        recall_at_k([["a"]], [{"a"}], 0)
    with pytest.raises(ValueError, match="leave it out"):
        recall_at_k([["a"]], [set()], 1)
    with pytest.raises(ValueError, match="2 queries have hits, 1"):
        recall_at_k([["a"], []], [{"a"}], 1)
    with pytest.raises(ValueError, match="nothing to average"):
        recall_at_k([], [], 1)
