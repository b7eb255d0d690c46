from __future__ import annotations

import pytest
import torch

from racm3.generator.config import SIZES, GeneratorConfig, named_config
from racm3.generator.transformer import Generator
from racm3.vocabulary import Vocabulary

OPT_VOCABULARY = Vocabulary(text_size=50_272 - 8_192 - 21, image_size=8_192, num_sentinels=16)
MILLIONS = {"125m": 125, "350m": 350, "1.3b": 1_300, "2.7b": 2_700}


@pytest.mark.parametrize("name", MILLIONS)
def test_a_named_size_has_the_parameters_of_its_name(name):
    """With OPT's vocabulary and 2,048 positions; OPT's own names are as far from their counts."""
    config = named_config(name, max_length=2048)
    with torch.device("meta"):
        model = Generator(config, OPT_VOCABULARY, generator=torch.Generator())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(MILLIONS[name] * 1e6, rel=0.02)


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
