from __future__ import annotations

import dataclasses

import pytest

from racm3.metrics import METRICS
from racm3.metrics.score import Score, mean_score, share_score


def score(**changes) -> Score:
    values = {"name": "psnr", "value": 20.0, "unit": "dB", "higher_is_better": True, "n": 3}
    return Score(**{**values, **changes})


def test_a_score_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        score().value = 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"n": -1}, "n is -1"),
        ({"low": 1.0}, "both ends"),
        ({"low": 2.0, "high": 1.0}, "reversed"),
    ],
)
def test_unreadable_scores_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        score(**changes)


def test_mean_and_its_interval():
    made = mean_score([1.0, 2.0, 3.0], name="x", unit="", higher_is_better=True, protocol="p")
    half = 1.96 * (1.0 / 3.0) ** 0.5  # variance 1, n 3
    assert made.value == 2.0
    assert (made.low, made.high) == (pytest.approx(2.0 - half), pytest.approx(2.0 + half))
    one = mean_score([4.0], name="x", unit="", higher_is_better=True, protocol="p")
    assert (one.value, one.low, one.high, one.n) == (4.0, None, None, 1)
    with pytest.raises(ValueError, match="nothing to average"):
        mean_score([], name="x", unit="", higher_is_better=True, protocol="p")


def test_metrics_are_registered_under_their_own_names():
    assert all(name == function.__name__ for name, function in METRICS.items())


def test_a_share_has_wilsons_interval():
    score = share_score([1.0] * 3 + [0.0] * 7, name="s", higher_is_better=True, protocol="p")
    assert (score.value, score.n, score.unit) == (0.3, 10, "fraction")
    assert score.low == pytest.approx(0.1078, abs=1e-4)  # the textbook's value of 3 in 10
    assert score.high == pytest.approx(0.6032, abs=1e-4)
    for shares in ([0.0], [1.0] * 5, [0.5, 0.25]):
        score = share_score(shares, name="s", higher_is_better=True, protocol="p")
        assert 0 <= score.low <= score.value <= score.high <= 1
        assert score.low < score.high
    with pytest.raises(ValueError, match="out of"):
        share_score([1.5], name="s", higher_is_better=True, protocol="p")
    with pytest.raises(ValueError, match="nothing to average"):
        share_score([], name="s", higher_is_better=True, protocol="p")
