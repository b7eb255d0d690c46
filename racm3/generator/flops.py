"""Training FLOPs by formula, for budgets of equal compute.

`6 N T` for the multiplications with N weights (2 forward, 4 backward) of T tokens, plus attention:
`12 * layers * width * T^2` a row without regard to causality, as in PaLM (arXiv:2204.02311,
appendix B). N leaves out embedding look-ups and counts the tied output layer once, for the tokens
whose logits are computed. Padding counts: it is computed. Recomputation does not (model FLOPs).

Of packed rows, attention counts by sample, T^2 being the sum of the samples' lengths squared: what
the model needs, and, apart from the few places by which samples read together differ, what runs.
"""

from __future__ import annotations

from racm3.generator.config import GeneratorConfig


def block_weights(config: GeneratorConfig) -> int:
    """Matrix weights of all blocks: N without embeddings, norms and biases."""
    return config.layers * (4 * config.width**2 + 2 * config.width * config.ffn_width)


def training_flops(
    config: GeneratorConfig,
    *,
    rows: int,
    length: int,
    predictions: int,
    vocabulary_size: int,
    attended: float | None = None,
) -> float:
    """FLOPs of one forward and backward pass.

    Args:
        config: Of the generator.
        rows: Rows of the batch.
        length: Tokens of a row, padding included.
        predictions: Positions whose logits are computed, over the whole batch.
        vocabulary_size: Width of the logits.
        attended: Sum of the lengths squared within which tokens attend; `None` = of whole rows.

    Returns:
        FLOPs, a multiplication and an addition counted as two.
    """
    dense = 6.0 * block_weights(config) * rows * length
    output = 6.0 * config.width * vocabulary_size * predictions
    squares = float(rows) * float(length) ** 2 if attended is None else attended
    attention = 12.0 * config.layers * config.width * squares
    return dense + output + attention
