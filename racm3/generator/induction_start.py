"""Starts of weights that let a small model copy from a context it has reason to trust.

For positions "document". A context that shows a relative of the main document has, at the place
that is to be written, the code that is most likely right, provided that it was right so far. To see
that takes an *induction head* (arXiv:2209.11895): two layers that training finds by itself, but not
in minutes. So they are there at the start. Channels of the residual stream, D = width of a head:

| block  | channels  | holds at the start                                           |
|--------|-----------|--------------------------------------------------------------|
| own    | D / 2     | own place: one vector a place, spread apart                  |
| next   | D / 2     | next place: the same vectors                                 |
| sink   | 1         | 1 at the place of `</s>`                                     |
| slot   | num_slots | which document                                               |
| code   | 3 D / 8   | the token's vector, from the image tokenizer's codebook      |
| prev   | 3 D / 8   | vector of the token before it: written by the first layer    |
| copied | 3 D / 8   | vector that is copied: written by the layers after the first |

* First layer, head 0: query = own place and slot, key = next place and slot, value = code -> prev.
* Layers after it, head 0: query = next place and code, key = own place and prev, value = code ->
  copied. So a context is copied where the token before agrees with the token just read. The leading
  `</s>` is a sink that holds nothing: it wins where no context agrees.
* The output layer, which is not tied to the embedding, reads copied.

Nothing else writes into these blocks at the start; the rest of the stream starts as usual. Only the
start is set: training may undo it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from racm3.generator.blocks import InductionBlocks, channels_of, induction_blocks

if TYPE_CHECKING:
    from racm3.generator.config import GeneratorConfig
    from racm3.generator.transformer import Generator

__all__ = ["spread_vectors", "start_image_embeddings", "start_induction"]

PLACE_GAIN, SLOT_GAIN, CODE_GAIN = 12.0, 5.0, 6.0
"""Nats that a match of the block adds to the logit of a key."""
DOUBT = 0.7
"""The sink wins over a context whose token before agrees less than this, 1 being equal."""
COPY_LOGIT = 7.0
"""Logit of a code that was copied once, with full weight."""
QUIET = 0.3
"""Scale of what the output layer reads from blocks that hold no prediction."""
_SPREAD_STEPS, _SPREAD_RATE, _SHARPNESS = 300, 0.02, 20.0


class _Match(NamedTuple):
    """A block of the query that is compared with a block of the key."""

    query: slice
    key: slice
    gain: float


@torch.no_grad()
def start_induction(model: Generator, generator: torch.Generator) -> None:
    """Makes head 0 of every layer the part of an induction head that the table above names.

    Args:
        model: With positions "document" and its own output layer; changed in place.
        generator: CPU random generator of the places' vectors.
    """
    config, blocks = model.config, _blocks(model.config)
    _start_embeddings(model, blocks, generator)
    previous = [
        _Match(blocks.own, blocks.next, PLACE_GAIN),
        _Match(blocks.slot, blocks.slot, SLOT_GAIN),
    ]
    agreeing = [
        _Match(blocks.next, blocks.own, PLACE_GAIN),
        _Match(blocks.code, blocks.prev, CODE_GAIN),
    ]
    sink = PLACE_GAIN + DOUBT * CODE_GAIN
    for layer, block in enumerate(model.blocks):
        head = _Head(config, block, blocks)
        if layer == 0:
            head.start(previous, target=blocks.prev)
        else:
            head.start(agreeing, target=blocks.copied, sink=sink)


def _blocks(config: GeneratorConfig) -> InductionBlocks:
    return induction_blocks(width=config.width, heads=config.heads, num_slots=config.num_slots)


class _Head:
    """Head 0 of one layer; its channels of query, key and value are filled from the first on."""

    def __init__(self, config: GeneratorConfig, block: Any, blocks: InductionBlocks) -> None:
        self.width, self.stream, self.blocks = config.head_width, config.width, blocks
        qkv = block.attention.qkv
        self.weight, self.bias, self.out = qkv.weight, qkv.bias, block.attention.out.weight
        self.out[: blocks.free.start] = 0
        block.ffn_out.weight[: blocks.free.start] = 0

    def start(self, matches: Sequence[_Match], *, target: slice, sink: float | None = None) -> None:
        """Sets it to compare blocks, and to write the codes it finds into `target`."""
        D, C = self.width, self.stream
        for first in (0, C, 2 * C):
            self.weight[first : first + D] = 0
        used = 0
        for match in matches:
            used = self._compare(match, used)
        if sink is not None:
            strength = (sink * D**0.5) ** 0.5
            self.bias[used] = strength
            self.weight[C + used, self.blocks.sink] = strength
        code = torch.eye(channels_of(self.blocks.code))
        self.weight[2 * C : 2 * C + len(code), self.blocks.code] = code
        self.out[:, :D] = 0
        self.out[target, : len(code)] = code

    def _compare(self, match: _Match, used: int) -> int:
        """Logit = gain * mean over the blocks' channels of query * key (entries are about 1)."""
        size = channels_of(match.query)
        strength = torch.eye(size) * (match.gain * self.width**0.5 / size) ** 0.5
        self.weight[used : used + size, match.query] = strength
        first = self.stream + used
        self.weight[first : first + size, match.key] = strength
        return used + size


def _start_embeddings(
    model: Generator, blocks: InductionBlocks, generator: torch.Generator
) -> None:
    config, tokens = model.config, model.tokens.weight
    places = config.num_places
    vectors = spread_vectors(places, channels_of(blocks.own), generator)
    for table, block in ((model.own_places, blocks.own), (model.next_places, blocks.next)):
        table.weight.zero_()
        table.weight[:, block] = vectors
    fixed = slice(0, blocks.free.start)
    slots = model.slots.weight
    slots[:, fixed] = 0
    loudness = channels_of(blocks.free) ** 0.5
    slots *= loudness / slots.norm(dim=1, keepdim=True)  # no slot is louder than another
    slots[:, blocks.slot] = torch.eye(config.num_slots) * config.num_slots**0.5
    tokens[:, : blocks.code.start] = 0
    tokens[:, blocks.prev.start : blocks.free.start] = 0
    end = model.vocabulary.document_end_id
    tokens[end, fixed] = 0
    tokens[end, blocks.sink] = config.width**-0.5  # the embedding is multiplied by its inverse
    assert model.output is not None
    model.output.weight[:, fixed] *= QUIET
    _read_copies(model, blocks, slice(None))


def _read_copies(model: Generator, blocks: InductionBlocks, rows: slice) -> None:
    """Lets the output layer read in `copied` what the embedding of the same id has in `code`."""
    assert model.output is not None
    size = channels_of(blocks.code)
    gain = COPY_LOGIT / size * model.config.width**0.5
    model.output.weight[rows, blocks.copied] = model.tokens.weight[rows, blocks.code] * gain


def spread_vectors(count: int, width: int, generator: torch.Generator) -> Tensor:
    """[count, width] vectors of norm sqrt(width), no two nearly parallel or opposite.

    From random ones by descent on the soft maximum of |cosine|: of 95 vectors in 16 dimensions the
    largest is about 0.33 then, and about 0.75 before.
    """
    vectors = torch.randn(count, width, generator=generator)
    own = torch.eye(count) * count
    with torch.enable_grad():
        for step in range(_SPREAD_STEPS):
            vectors = vectors.detach().requires_grad_(True)
            unit = torch.nn.functional.normalize(vectors, dim=1)
            crowd = torch.logsumexp(_SHARPNESS * ((unit @ unit.T).abs() - own), dim=1).sum()
            (gradient,) = torch.autograd.grad(crowd, vectors)
            rate = _SPREAD_RATE * (1 - step / _SPREAD_STEPS)
            vectors = unit.detach() - rate * gradient / (gradient.norm(dim=1, keepdim=True) + 1e-9)
    spread: Tensor = torch.nn.functional.normalize(vectors.detach(), dim=1) * width**0.5
    return spread


@torch.no_grad()
def start_image_embeddings(
    model: Generator, codebook: Tensor, *, generator: torch.Generator
) -> None:
    """Starts the image codes' embeddings from the image tokenizer's codebook.

    Codes that look alike start alike. The codebook is centred, turned by a random projection and
    scaled to the standard deviation that random embeddings have. With an induction start it fills
    the block `code`, and the output layer follows; otherwise all channels.

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
    std, values = config.width**-0.5, codebook.detach().cpu().float()
    rows = slice(ids.start, ids.stop)
    tokens = model.tokens.weight
    if not config.induction_start:
        tokens[rows] = _projected(values, config.width, std, generator).to(tokens)
        return
    blocks = _blocks(config)
    size = channels_of(blocks.code)
    tokens[rows, blocks.code] = _projected(values, size, std, generator).to(tokens)
    _read_copies(model, blocks, rows)


def _projected(values: Tensor, width: int, std: float, generator: torch.Generator) -> Tensor:
    """[n, channels] -> [n, width] of the given standard deviation; keeps angles where it can."""
    channels = values.shape[1]
    projection = torch.randn(width, channels, generator=generator)
    if channels <= width:
        projection, _ = torch.linalg.qr(projection)
    projected = (values - values.mean(0)) @ projection.T
    return projected * (std / projected.std().clamp_min(1e-12))
