import torch

from racm3.generator.config import GeneratorConfig
from racm3.generator.flops import block_weights, training_flops
from racm3.generator.transformer import Generator
from racm3.vocabulary import Vocabulary

CONFIG = GeneratorConfig(layers=3, width=24, heads=3, ffn=40, positions="rope", bias=False)


def test_block_weights_are_the_matrices_of_the_blocks():
    model = Generator(CONFIG, Vocabulary(5, 4, 2), generator=torch.Generator())
    matrices = sum(p.numel() for b in model.blocks for p in b.parameters() if p.ndim == 2)
    assert block_weights(CONFIG) == matrices


def test_rows_add_up_and_length_costs_more_than_its_share():
    def flops(rows, length):
        return training_flops(
            CONFIG, rows=rows, length=length, predictions=rows * length, vocabulary_size=50
        )

    assert flops(6, 30) == 2 * flops(3, 30)
    assert flops(1, 60) > 2 * flops(1, 30)


def test_one_token_costs_six_flops_a_weight_and_its_attention():
    expected = 6 * block_weights(CONFIG) + 6 * 24 * 50 + 12 * 3 * 24
    assert training_flops(CONFIG, rows=1, length=1, predictions=1, vocabulary_size=50) == expected


def test_packed_rows_pay_for_the_attention_of_their_samples():
    size = {"rows": 2, "length": 30, "predictions": 50, "vocabulary_size": 50}
    apart = training_flops(CONFIG, **size, attended=30**2 + 20**2 + 10**2)
    assert training_flops(CONFIG, **size) - apart == 12 * 3 * 24 * (2 * 30**2 - 1400)
    assert training_flops(CONFIG, **size, attended=2 * 30**2) == training_flops(CONFIG, **size)
