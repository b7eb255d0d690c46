"""What a generator's training step holds in memory, by formula: for plans, before there is one.

With C = width, F = feed-forward, s = 2 bytes under bf16 autocast and 4 without it, a block keeps
for its backward pass, a token: the residual stream twice (4 C each, always float32); the two normed
copies that linear layers read, q, k, v and what attention found (6 s C); the feed-forward before
and after its activation (2 s F; ReLU keeps one, s F); q and k once more where norm or rotation
changes them (2 s C); packed, what attention found in the order of the rows, too (s C). With
checkpointing a block keeps its input (4 C), and one block at a time has the rest.

Left out: embeddings and places of the input, the allocator's fragments, what libraries hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from racm3.generator.config import GeneratorConfig

__all__ = ["TrainingMemory", "block_bytes", "parameter_count", "training_memory"]

_FLOAT32, _BFLOAT16 = 4, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingMemory:
    """Bytes on one device."""

    weights: int
    """float32, and the copies computed with: in bfloat16 under autocast; with FSDP2 those that are
    gathered at one time, two blocks and the embeddings."""
    gradients: int
    """float32."""
    optimizer: int
    """Adam's two moments, float32."""
    logits: int
    """Of all predictions at the loss: the logits, their logarithms, and a gradient."""
    activations: int
    """Of the blocks, every one keeping all it needs."""
    checkpointed: int
    """Of the blocks with `checkpoint_activations`."""

    def total(self, *, checkpointing: bool) -> int:
        """Sum of the parts."""
        states = self.weights + self.gradients + self.optimizer + self.logits
        return states + (self.checkpointed if checkpointing else self.activations)


def parameter_count(config: GeneratorConfig, vocabulary_size: int) -> int:
    """Parameters, of embeddings, norms and biases too."""
    C = config.width
    tables = {
        "document": 2 * config.num_places + config.num_slots,
        "sequence": config.max_length,
        "rope": 0,
    }
    rows = vocabulary_size * (1 if config.tie_embeddings else 2) + tables[config.positions]
    return config.layers * _block_parameters(config) + rows * C + C * (1 + config.bias)


def _block_parameters(config: GeneratorConfig) -> int:
    C, F, D = config.width, config.ffn_width, config.head_width
    biases = config.bias * (3 * C + C + F + C)
    norms = 2 * C * (1 + config.bias)
    return 4 * C**2 + 2 * C * F + biases + norms + 2 * D * config.qk_norm


def block_bytes(config: GeneratorConfig, *, bf16: bool, packed: bool = False) -> int:
    """What one block keeps of a token for its backward pass (formula above)."""
    s = _BFLOAT16 if bf16 else _FLOAT32
    C, F = config.width, config.ffn_width
    again = 2 * (config.qk_norm + (config.positions == "rope")) + packed
    hidden = 1 if config.activation == "relu" else 2
    return 2 * _FLOAT32 * C + (6 + again) * s * C + hidden * s * F


def training_memory(
    config: GeneratorConfig,
    *,
    vocabulary_size: int,
    tokens: int,
    predictions: int,
    bf16: bool,
    packed: bool = False,
    shards: int = 1,
) -> TrainingMemory:
    """Bytes at the widest moment of a step.

    Args:
        config: Of the generator.
        vocabulary_size: Width of the logits.
        tokens: Positions that the device computes in one forward pass.
        predictions: Those whose logits it computes.
        bf16: Whether it computes under bfloat16 autocast.
        packed: Whether several samples share a row.
        shards: Devices over which FSDP2 splits weights, gradients and optimiser; 1 = it does not.
    """
    parameters = parameter_count(config, vocabulary_size)
    block = block_bytes(config, bf16=bf16, packed=packed) * tokens
    kept = _FLOAT32 * config.width * tokens
    logit = (_BFLOAT16 if bf16 else 0) + 2 * _FLOAT32
    own, copied = -(-parameters // shards), parameters if bf16 else 0
    if shards > 1:
        copied = parameters - max(0, config.layers - 2) * _block_parameters(config)
    return TrainingMemory(
        weights=own * _FLOAT32 + copied * (_BFLOAT16 if bf16 else _FLOAT32),
        gradients=own * _FLOAT32,
        optimizer=own * 2 * _FLOAT32,
        logits=predictions * vocabulary_size * logit,
        activations=config.layers * block,
        checkpointed=config.layers * kept + block,
    )
