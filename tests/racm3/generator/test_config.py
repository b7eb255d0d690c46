from __future__ import annotations

from typing import get_args

import pytest
import torch

from racm3.generator.config import SIZES, GeneratorConfig, SizeName, named_config
from racm3.generator.transformer import Generator
from racm3.vocabulary import Vocabulary

OPT_VOCABULARY = Vocabulary(text_size=50_272 - 8_192 - 20, image_size=8_192, num_sentinels=16)
OPT_POSITIONS = 2_050
OPT = {"125m": 125_239_296, "350m": 331_196_416, "1.3b": 1_315_758_080, "2.7b": 2_651_596_800}
"""Parameters of the published models."""
NAMES = {"125m": 125e6, "350m": 350e6, "1.3b": 1.3e9, "2.7b": 2.7e9}


def count(config, vocabulary=OPT_VOCABULARY):
    """By building it, on the meta device."""
    with torch.device("meta"):
        model = Generator(config, vocabulary, generator=torch.Generator())
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_size_has_a_name_and_a_name_a_size():
    assert list(SIZES) == list(get_args(SizeName))


@pytest.mark.parametrize("name", OPT)
def test_a_named_size_has_the_parameters_of_its_opt(name):
    """To the last one; OPT's 350M, whose embedding is narrower than its stream, apart."""
    width = SIZES[name].width
    ours = count(named_config(name, max_length=OPT_POSITIONS, qk_norm=False))
    narrow = 512
    if name == "350m":  # a wide embedding for a narrow one and its two projections; our last norm
        ours -= OPT_VOCABULARY.size * (width - narrow) - 2 * narrow * width + 2 * width
    assert ours == OPT[name]


@pytest.mark.parametrize(
    ("name", "off", "opt_off"),
    [
        ("125m", 0.0019, 0.0019),
        ("350m", 0.0168, -0.0537),
        ("1.3b", 0.0121, 0.0121),
        ("2.7b", -0.0179, -0.0179),
    ],
)
def test_names_round_as_the_docstring_says(name, off, opt_off):
    ours = count(named_config(name, max_length=OPT_POSITIONS))
    assert ours / NAMES[name] - 1 == pytest.approx(off, abs=1e-4)
    assert OPT[name] / NAMES[name] - 1 == pytest.approx(opt_off, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "more"), [("125m", 13.3), ("350m", 17.7), ("1.3b", 35.5), ("2.7b", 44.3)]
)
def test_the_larger_vocabulary_costs_what_the_docstring_says(name, more):
    vocabulary = Vocabulary(text_size=56_320, image_size=8_192, num_sentinels=1_020)
    assert vocabulary.size == 65_536
    least = count(named_config(name, max_length=OPT_POSITIONS))
    assert (count(SIZES[name], vocabulary) - least) / 1e6 == pytest.approx(more, abs=0.05)
    with_norm = count(named_config(name, qk_norm=True)) - count(named_config(name, qk_norm=False))
    assert with_norm == 2 * SIZES[name].layers * SIZES[name].head_width


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"heads": 5}, "width 96 must be 5 heads of an even size"),
        ({"heads": 32}, "heads of an even size"),
        ({"ffn": 0}, "ffn must be at least 1"),
        ({"positions": "document"}, "num_places"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        named_config("tiny", **changes)


def test_an_unknown_size_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'3b'; there are .*2\.7b"):
        named_config("3b")


def test_the_feed_forward_is_four_times_as_wide_unless_it_is_said():
    assert {c.ffn_width // c.width for c in SIZES.values()} == {4}
    assert GeneratorConfig(layers=1, width=8, heads=2, ffn=5).ffn_width == 5
