"""How the weights of a generator start, before anything is learnt.

Linear layers: normal, `GeneratorConfig.init_std`; those that write into the residual stream are
divided by sqrt(2 x layers), as in Megatron (arXiv:1909.08053). Vocabulary: 1 / sqrt(width), so that
tokens enter with unit channels (they are multiplied by sqrt(width)) and logits start at unit size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from racm3.generator.config import GeneratorConfig

__all__ = ["InitConfig", "initialise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """Switches of the start. They are no part of what a trained generator is."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    truncate: float | None = None
    """Draws beyond so many standard deviations are drawn anew: 4 in RA-CM3's code base, 3 in
    CM3Leon (arXiv:2309.02591); None: never."""
    positions_std: float = 1.0
    """Of the table of positions "sequence": 1 is as loud as a token; CM3Leon has 0.0002."""
    output: Literal["normal", "zero"] = "normal"
    """Of an output layer that is not tied: ``zero`` (CM3Leon) starts with all tokens as likely."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: A number is out of its range.
        """
        if self.truncate is not None and self.truncate <= 0:
            raise ValueError("InitConfig.truncate must be above 0, or None for no bound.")
        if self.positions_std < 0:
            raise ValueError("InitConfig.positions_std must be at least 0.")


@torch.no_grad()
def initialise(
    model: nn.Module, config: GeneratorConfig, init: InitConfig, *, generator: torch.Generator
) -> None:
    """Draws all weights in place.

    Args:
        model: The `Generator` of `config`, as built.
        config: Its shape, and `init_std`.
        init: How.
        generator: CPU random generator.

    Raises:
        ValueError: A zero output layer is asked of a model whose output is the embedding.
    """
    if init.output == "zero" and config.tie_embeddings:
        raise ValueError('InitConfig.output "zero" needs tie_embeddings false: it would erase it.')
    unit = config.width**-0.5
    stds = {"tokens": unit, "output": unit if init.output == "normal" else 0.0}
    stds["sequence_places"] = init.positions_std
    residual = config.init_std / math.sqrt(2 * config.layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            std = residual if name.endswith((".out", ".ffn_out")) else config.init_std
            _draw(module.weight, std, init.truncate, generator)
            if config.bias:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            _draw(module.weight, 1.0, init.truncate, generator)
            module.weight.mul_(stds.get(name, 1.0))


def _draw(weight: Tensor, std: float, truncate: float | None, generator: torch.Generator) -> None:
    if truncate is None:
        weight.normal_(0, std, generator=generator)
    else:
        bound = truncate * std
        nn.init.trunc_normal_(weight, 0.0, std, -bound, bound, generator=generator)
