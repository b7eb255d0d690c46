from __future__ import annotations

import pytest
import torch

from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.generator.warm_start import start_from
from racm3.vocabulary import Vocabulary


def make(seed, *, vocabulary=Vocabulary(20, 16, 2), **changes):  # noqa: B008  (frozen)
    shape = {"layers": 2, "width": 24, "heads": 3, "positions": "document", "num_places": 30}
    config = GeneratorConfig(**shape | changes)
    return Generator(config, vocabulary, generator=torch.Generator().manual_seed(seed)).eval()


def inputs(slots):
    random = torch.Generator().manual_seed(1)
    draw = lambda high: torch.randint(0, high, (3, 12), generator=random)  # noqa: E731
    return draw(20), draw(30), draw(30), draw(slots)


def test_the_weights_are_those_of_the_other_and_its_own_again():
    model, other = make(0), make(1)
    start_from(model, other)
    with torch.no_grad():
        assert torch.equal(model(*inputs(3)), other(*inputs(3)))
        model.tokens.weight.zero_()
    assert other.tokens.weight.any()


@pytest.mark.parametrize(("own", "its"), [(3, 1), (1, 3)])
def test_slots_that_both_have_are_copied(own, its):
    model, other = make(0, num_slots=own), make(1, num_slots=its)
    before = model.slots.weight.clone()
    start_from(model, other)
    assert torch.equal(model.slots.weight[:1], other.slots.weight[:1])
    assert torch.equal(model.slots.weight[1:], before[1:])
    with torch.no_grad():  # without contexts both say the same
        assert torch.equal(model(*inputs(1)), other(*inputs(1)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 48}, r"width \(24 here, 48 there\)"),
        ({"layers": 3}, r"layers \(2 here, 3 there\)"),
        ({"ffn": 50}, r"ffn_width \(96 here, 50 there\)"),
        ({"activation": "relu"}, r"activation \(gelu here, relu there\)"),
        ({"qk_norm": True}, r"qk_norm \(False here, True there\)"),
        ({"tie_embeddings": False}, r"tie_embeddings \(True here, False there\)"),
        ({"positions": "rope"}, r"positions \(document here, rope there\)"),
        ({"num_places": 31}, r"num_places \(30 here, 31 there\)"),
        (
            {"vocabulary": Vocabulary(20, 17, 2)},
            r"vocabulary \(2 sentinels \+ 20 text \+ 16 image here, 2 sent.*17 image there\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes, said):
    model = make(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"they differ in {said}"):
        start_from(model, make(1, **changes))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_tables_of_positions_must_be_of_one_length():
    with pytest.raises(ValueError, match="max_length"):
        start_from(
            make(0, positions="sequence", max_length=30),
            make(1, positions="sequence", max_length=40),
        )
    start_from(make(0, positions="rope", max_length=30), make(1, positions="rope", max_length=40))
