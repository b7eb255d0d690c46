from __future__ import annotations

import pytest
import torch

from racm3.generator.config import SIZES, GeneratorConfig
from racm3.generator.memory import block_bytes, parameter_count, training_memory
from racm3.generator.transformer import Generator
from racm3.sequence.packing import samples_of
from racm3.vocabulary import Vocabulary

VOCABULARY = Vocabulary(100, 16, 2)


def make(config):
    return Generator(config, VOCABULARY, generator=torch.Generator())


@pytest.mark.parametrize("positions", ["document", "rope", "sequence"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": True, "ffn": 40}, {"tie_embeddings": False, "num_slots": 5}]
)
def test_parameters_by_formula_are_those_that_are_there(positions, bias, changes):
    config = GeneratorConfig(
        layers=3, width=24, heads=3, max_length=50, positions=positions, num_places=30, bias=bias,
        **changes,
    )  # fmt: skip
    with torch.device("meta"):
        there = sum(p.numel() for p in make(config).parameters())
    assert parameter_count(config, VOCABULARY.size) == there


@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES)
def test_parameters_of_the_named_sizes(config):
    with torch.device("meta"):
        there = sum(p.numel() for p in make(config).parameters())
    assert parameter_count(config, VOCABULARY.size) == there


def kept_bytes(config, *, bf16, packed):
    """Bytes, a token, that one more block keeps for the backward pass: measured."""
    B, T = 5, 70
    samples = samples_of([[35, 35]] * B, T) if packed else None
    kept = []
    for layers in (1, 2):
        model = make(GeneratorConfig(**{**config, "layers": layers}))
        found = {}

        def note(tensor, found=found, model=model):
            weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
            storage = tensor.untyped_storage()
            is_copy = tensor.ndim == 2 and B * T not in tensor.shape  # of a weight, in bfloat16
            if storage.data_ptr() not in weights and not is_copy:
                found[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive: no address twice
            return tensor

        x = torch.randn(B, T, 64)
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            for block in model.blocks:
                x = block(x, None, samples)
        kept.append(sum(size for size, _ in found.values()))
    return (kept[1] - kept[0]) / (B * T)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_block_keeps_what_the_formula_says(bf16, packed, activation):
    config = {"width": 64, "heads": 2, "max_length": 64, "activation": activation}
    measured = kept_bytes(config, bf16=bf16, packed=packed)
    formula = block_bytes(GeneratorConfig(layers=1, **config), bf16=bf16, packed=packed)
    assert formula <= measured <= 1.05 * formula  # the rest: one number a token and head or norm


def test_memory_adds_up():
    config = GeneratorConfig(layers=10, width=64, heads=2)
    memory = training_memory(
        config, vocabulary_size=118, tokens=1000, predictions=500, bf16=True, packed=True
    )
    parameters = parameter_count(config, 118)
    assert memory.weights + memory.gradients + memory.optimizer == 18 * parameters
    assert memory.logits == 500 * 118 * 10
    block = block_bytes(config, bf16=True, packed=True) * 1000
    assert memory.activations == 10 * block
    assert memory.checkpointed == 10 * 4 * 64 * 1000 + block
    saved = memory.total(checkpointing=False) - memory.total(checkpointing=True)
    assert saved == memory.activations - memory.checkpointed > 0
