import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from racm3.sampling.logits import contrast, distribution, draw, guide, penalise, repeats


def logits(rows=3, ids=7, seed=0):
    return torch.randn(rows, ids, generator=torch.Generator().manual_seed(seed))


def test_guidance_is_a_line_through_both():
    c, u = logits(seed=1), logits(seed=2)
    torch.testing.assert_close(guide(c, u, 1.0), c)
    torch.testing.assert_close(guide(c, u, 0.0), u)
    torch.testing.assert_close(guide(c, u, 3.0) - c, 2.0 * (c - u))


def test_an_amateur_that_knows_nothing_changes_no_order():
    expert = logits()
    flat = torch.zeros_like(expert)
    scored = contrast(expert, flat, k=7, alpha=1e-6, amateur_temperature=0.5)
    torch.testing.assert_close(
        scored - scored.max(-1, keepdim=True).values, expert - expert.max(-1, keepdim=True).values
    )


def test_contrast_keeps_what_is_plausible_to_the_expert():
    expert = torch.tensor([[0.5, 0.25, 0.15, 0.10]]).log()
    amateur = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log()
    scored = contrast(expert, amateur, k=2, alpha=0.5, amateur_temperature=1.0)
    # The second largest is .25, so that .125 is the threshold.
    expected = [math.log(0.5 / 0.7), math.log(0.25 / 0.1), math.log(0.15 / 0.1), -math.inf]
    assert scored[0].tolist() == pytest.approx(expected, rel=1e-5)


@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.1, 3),
    top_k=st.one_of(st.none(), st.integers(1, 9)),
    top_p=st.floats(0.05, 1),
)
@settings(deadline=None)
def test_a_distribution_sums_to_one_and_never_adds_ids(seed, temperature, top_k, top_p):
    drawn = distribution(logits(seed=seed), temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(drawn.sum(-1), torch.ones(3, dtype=torch.float64))
    if top_k is not None:
        assert ((drawn > 0).sum(-1) <= top_k).all()
    whole = logits(seed=seed).double().div(temperature).softmax(-1)
    kept = torch.where(drawn > 0, whole, 0).sum(-1)
    if top_k is None:
        assert (kept >= top_p - 1e-9).all()


def test_temperature_zero_takes_the_most_likely():
    drawn = distribution(logits(), temperature=0, top_k=None, top_p=1.0)
    assert drawn.argmax(-1).equal(logits().argmax(-1))
    assert drawn.max(-1).values.eq(1).all()


def test_draws_follow_the_distribution_and_never_hit_mass_zero():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0]], dtype=torch.float64)
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    ids = draw(probabilities.expand(1000, -1), uniforms)
    assert torch.bincount(ids, minlength=6).tolist() == [0, 500, 0, 250, 250, 0]
    edge = torch.nextafter(torch.tensor([1.0]), torch.tensor([0.0])).double()
    assert draw(probabilities, edge).item() == 4


@given(
    rows=st.lists(st.floats(-20, 20), min_size=2, max_size=9),
    power=st.floats(1, 10),
    shift=st.floats(-50, 50),
)
def test_a_penalty_is_a_power_of_the_probability(rows, power, shift):
    logits = torch.tensor(rows, dtype=torch.float64)
    written = [0, 1, 0]
    p = logits.softmax(-1)
    expected = torch.where(torch.arange(len(rows)) < 2, p**power, p)
    got = penalise(logits + shift, written, power).exp()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-12)


@given(written=st.lists(st.integers(0, 3), max_size=12), n=st.integers(1, 4))
def test_what_would_repeat_an_ngram_is_known(written, n):
    banned = repeats(written, n)
    grams = {tuple(written[i : i + n]) for i in range(len(written) - n + 1)}
    for token in range(4):
        longer = [*written, token]
        again = len(longer) >= n and tuple(longer[len(longer) - n :]) in grams
        assert again == (token in banned)
