from __future__ import annotations

import math

import pytest
import torch

from racm3.generator.config import GeneratorConfig
from racm3.generator.initial_weights import InitConfig
from racm3.generator.transformer import Generator
from racm3.vocabulary import Vocabulary

WIDTH, LAYERS, STD = 64, 8, 0.05


def make(init=None, **changes):
    config = GeneratorConfig(
        layers=LAYERS, width=WIDTH, heads=4, max_length=200, init_std=STD, **changes
    )
    vocabulary = Vocabulary(400, 100, 2)
    return Generator(config, vocabulary, generator=torch.Generator().manual_seed(0), init=init)


def stds(model):
    return {name: float(p.detach().std()) for name, p in model.named_parameters() if p.ndim == 2}


@pytest.mark.parametrize("truncate", [None, 4.0])
def test_standard_deviations_are_megatrons(truncate):
    model = make(InitConfig(truncate=truncate), tie_embeddings=False)
    for name, std in stds(model).items():
        expected = STD
        if name.endswith(("attention.out.weight", "ffn_out.weight")):
            expected = STD / math.sqrt(2 * LAYERS)
        elif name in ("tokens.weight", "output.weight"):
            expected = WIDTH**-0.5
        elif name == "sequence_places.weight":
            expected = 1.0
        assert std == pytest.approx(expected, rel=0.05), name


def test_truncated_draws_stay_inside_and_others_do_not():
    cut, free = make(InitConfig(truncate=2.0)), make()
    for (name, one), other in zip(cut.named_parameters(), free.parameters(), strict=True):
        if one.ndim == 2:
            bound = 2 * float(other.detach().std())
            assert float(one.detach().abs().max()) < 1.1 * bound, name
            assert float(other.detach().abs().max()) > 1.2 * bound, name


def test_positions_may_start_small_and_the_output_at_nothing():
    model = make(InitConfig(positions_std=0.0002, output="zero"), tie_embeddings=False)
    assert stds(model)["sequence_places.weight"] == pytest.approx(0.0002, rel=0.05)
    ids = torch.randint(0, 400, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert not model(ids).any()


def test_the_start_says_nothing_of_what_it_is_not_asked():
    """Switches at their defaults change no weight."""
    for one, other in zip(make().parameters(), make(InitConfig()).parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"truncate": 0.0}, "above 0"), ({"positions_std": -1.0}, "at least 0")],
)
def test_what_cannot_be_drawn_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        InitConfig(**change)
    with pytest.raises(ValueError, match="tie_embeddings false"):
        make(InitConfig(output="zero"))
