"""Starting a generator from the weights of another one (RA-CM3, appendix D.2).

The paper found vanilla CM3 with retrieval added by fine-tuning worse than training with retrieval
from the first step; whoever doubts it can try.
"""

from __future__ import annotations

import torch

from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator

__all__ = ["start_from"]

_TENSORS = (
    *("layers", "width", "heads", "ffn_width", "positions", "tie_embeddings", "qk_norm", "bias"),
    *("activation", "num_places"),
)
"""What decides the weights and what they mean. Dropout, initialisation and the like do not."""


@torch.no_grad()
def start_from(model: Generator, other: Generator) -> None:
    """Copies all weights of `other` into `model`.

    The slots of positions "document" may differ in number: a generator without contexts has one
    (the main document), RA-CM3 three. Rows that both have are copied, the others keep their start.

    Args:
        model: Changed in place.
        other: Left as it is.

    Raises:
        ValueError: Vocabulary or shape differ; the sentence says in what.
    """
    differences = _differences(model, other)
    if differences:
        raise ValueError(f"they differ in {', '.join(differences)}")
    state = other.state_dict()
    if model.config.positions == "document":
        kept = min(model.config.num_slots, other.config.num_slots)
        slots = model.slots.weight.clone()
        slots[:kept] = state["slots.weight"][:kept]
        state = state | {"slots.weight": slots}
    model.load_state_dict(state)


def _differences(model: Generator, other: Generator) -> list[str]:
    """Each with both values, the model's own first."""
    names = [*_TENSORS, *(["max_length"] if model.config.positions == "sequence" else [])]
    pairs = [("vocabulary", _sizes(model), _sizes(other))]
    pairs += [(name, _value(model.config, name), _value(other.config, name)) for name in names]
    return [f"{name} ({mine} here, {its} there)" for name, mine, its in pairs if mine != its]


def _value(config: GeneratorConfig, name: str) -> str:
    return str(getattr(config, name))


def _sizes(model: Generator) -> str:
    vocabulary = model.vocabulary
    return (
        f"{vocabulary.num_sentinels} sentinels + {vocabulary.text_size} text + "
        f"{vocabulary.image_size} image"
    )
