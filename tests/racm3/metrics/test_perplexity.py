from __future__ import annotations

import numpy as np
import pytest

from racm3.metrics.bootstrap import resample
from racm3.metrics.perplexity import ExampleNLL, bits_score, perplexity_score

MEASURED = ExampleNLL(nll=np.array([2.0, 6.0, 1.0]), tokens=np.array([1.0, 3.0, 2.0]))


def drawn(groups, resamples=500):
    return resample(groups, rng=np.random.default_rng(0), resamples=resamples)


def test_perplexity_counts_tokens_not_examples():
    score = perplexity_score(MEASURED, task="image", resampling=drawn(["a", "b", "c"]))
    assert score.name == "image_perplexity"
    assert score.value == pytest.approx(np.exp(9.0 / 6.0))
    assert score.low == pytest.approx(np.exp(0.5))  # the last example alone
    assert score.high == pytest.approx(np.exp(2.0))


def test_clusters_are_drawn_whole():
    score = perplexity_score(MEASURED, task="caption", resampling=drawn(["a", "a", "a"]))
    assert score.low == score.high == pytest.approx(score.value)
    assert "1 concepts" in score.protocol


@pytest.mark.parametrize(
    ("task", "name"), [("image", "bits_per_pixel"), ("caption", "bits_per_byte")]
)
def test_bits_are_nats_over_the_extent(task, name):
    extent = np.array([8.0, 16.0, 4.0])
    score = bits_score(MEASURED, extent, task=task, resampling=drawn(["a", "b", "c"]))
    assert (score.name, score.unit, score.n) == (name, "bit", 3)
    assert score.value == pytest.approx(9.0 / np.log(2.0) / 28.0)
    assert score.low <= score.value <= score.high


def test_bits_do_not_depend_on_how_finely_tokens_cut():
    """The same probability of the same captions, in twice as many tokens."""
    fine = ExampleNLL(nll=MEASURED.nll, tokens=2.0 * MEASURED.tokens)
    extent, some = np.array([8.0, 16.0, 4.0]), drawn(["a", "b", "c"])
    one, other = (bits_score(m, extent, task="caption", resampling=some) for m in (MEASURED, fine))
    assert one == other


def test_a_uniform_model_needs_the_logarithm_of_the_codebook():
    """64 codes of 256 for 32 x 32 pixels: half a bit a pixel."""
    nll = ExampleNLL(nll=np.full(4, 64 * np.log(256.0)), tokens=np.full(4, 64.0))
    some = drawn(list("abcd"))
    score = bits_score(nll, np.full(4, 32.0 * 32.0), task="image", resampling=some)
    assert (score.low, score.value, score.high) == pytest.approx((0.5, 0.5, 0.5))


def test_nothing_measured_is_refused():
    some = drawn(["a", "b", "c"])
    with pytest.raises(ValueError, match="2 extents"):
        bits_score(MEASURED, np.ones(2), task="image", resampling=some)
    with pytest.raises(ValueError, match="0 in all"):
        bits_score(MEASURED, np.zeros(3), task="image", resampling=some)
