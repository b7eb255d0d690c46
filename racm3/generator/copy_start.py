"""Starts of weights that make copying from a context easy, for positions "document".

A context that shows the same thing has, at the place that is to be written, the code that is most
likely right. Training finds that out by itself, but in a budget of minutes it finds it late; so the
first two layers start with one head that does it. Channels, D = width of a head:

| channels | hold at the start |
|---|---|
| [0, D) | own place: a random vector of norm sqrt(D) for each place |
| [D, 2D) | next place: the same vectors |
| [2D, 3D) | the code's vector, from the image tokenizer's codebook where it is given |

Head 0: query = the next place, key = the own place, value = the code's vector, written back to
where it came from. Tokens and slots start at 0 in [0, 2D), so nothing disturbs the match. Only the
start is set; training may undo it. (With random projections of the whole stream instead, the match
drowned in noise over the 200 keys of a sequence.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from racm3.generator.transformer import Generator

__all__ = ["start_copy_head", "start_image_embeddings"]

COPY_LAYERS = 2
MATCH = 2.0
"""Logit of a match, times sqrt(D): query and key maps share it."""
REST = 0.7
"""Standard deviation of the channels that no start is given to, in units of width**-0.5."""


@torch.no_grad()
def start_copy_head(model: Generator, generator: torch.Generator) -> None:
    """Makes head 0 of the first two layers copy what stands at the place to be written.

    Args:
        model: With positions "document" and at least 3 heads; changed in place.
        generator: CPU random generator of the places' vectors.
    """
    D, places = model.config.head_width, model.config.num_places
    vectors = torch.randn(places, D, generator=generator)
    vectors *= D**0.5 / vectors.norm(dim=1, keepdim=True)
    for table, start in ((model.own_places, 0), (model.next_places, D)):
        table.weight.zero_()
        table.weight[:, start : start + D] = vectors
    model.slots.weight[:, : 2 * D] = 0
    model.tokens.weight[:, : 2 * D] = 0
    for block in list(model.blocks)[:COPY_LAYERS]:
        _start_head(block, D, model.config.width)


def _start_head(block: Any, D: int, C: int) -> None:
    """Sets head 0 of one block; see the table above."""
    unit, strength = torch.eye(D), MATCH**0.5
    qkv, out = block.attention.qkv.weight, block.attention.out.weight
    for start, source, gain in ((0, D, strength), (C, 0, strength), (2 * C, 2 * D, 1.0)):
        qkv[start : start + D] = 0
        qkv[start : start + D, source : source + D] = gain * unit
    out[:, :D] = 0
    out[2 * D : 3 * D, :D] = unit


@torch.no_grad()
def start_image_embeddings(
    model: Generator, codebook: Tensor, *, generator: torch.Generator
) -> None:
    """Starts the image codes' embeddings from the image tokenizer's codebook.

    Codes that look alike start alike. The codebook is centred, turned by a random projection and
    scaled to the standard deviation that random embeddings have. Beside a copy head it fills the
    channels that the head copies; otherwise all channels.

    Args:
        model: Changed in place.
        codebook: float [image_size, channels].
        generator: CPU random generator of the projection.

    Raises:
        ValueError: The codebook does not have `vocabulary.image_size` rows.
    """
    ids, config = model.vocabulary.image_range, model.config
    if codebook.shape[0] != len(ids):
        raise ValueError(
            f"The codebook has {codebook.shape[0]} codes, the vocabulary {len(ids)}: "
            "use the codebook of the tokenizer that made the image tokens."
        )
    std = config.width**-0.5
    copies = config.positions == "document" and config.copy_head
    D = config.head_width if copies else config.width
    rows = _projected(codebook.detach().cpu().float(), D, std, generator)
    if copies:
        rest = torch.randn(len(ids), config.width - 3 * D, generator=generator) * std * REST
        rows = torch.cat([torch.zeros(len(ids), 2 * D), rows, rest], dim=1)
    model.tokens.weight[ids.start : ids.stop] = rows.to(model.tokens.weight)


def _projected(values: Tensor, width: int, std: float, generator: torch.Generator) -> Tensor:
    """[n, channels] -> [n, width] of the given standard deviation; keeps angles where it can."""
    channels = values.shape[1]
    projection = torch.randn(width, channels, generator=generator)
    if channels <= width:
        projection, _ = torch.linalg.qr(projection)
    projected = (values - values.mean(0)) @ projection.T
    return projected * (std / projected.std().clamp_min(1e-12))
