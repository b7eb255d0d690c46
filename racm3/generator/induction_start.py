"""A start of weights that lets a small model copy from a context it has reason to trust.

For positions "document". A context that shows a relative of the main document has, at the place
that is to be written, the code that is most likely right, provided that it was right so far. To see
that takes *induction heads* (arXiv:2209.11895): two layers that training finds by itself, but not
in minutes. So they are there at the start. Channels of the residual stream, D = width of a head:

| block      | channels  | holds at the start                                           |
|------------|-----------|--------------------------------------------------------------|
| own        | D / 2     | own place (`racm3.generator.place_vectors`)                  |
| next       | D / 2     | next place: the same vectors                                 |
| sink       | 1         | 1 at the leading `</s>`                                      |
| slot       | num_slots | which document                                               |
| code       | 3 D / 8   | the token's vector, from the image tokenizer's codebook      |
| left       | 3 D / 8   | vector of the token before it                                |
| above      | 3 D / 8   | vector of the code above it                                  |
| above_next | 3 D / 8   | vector of the code above the next place                      |
| copied     | 3 D / 8   | vectors that are copied                                      |

The first layer's heads fill left, above and above_next, each from the same document. In every layer
after it, head 0 looks for the next place where what stands to the left agrees with the token just
read, head 1 where what stands above agrees with what stands above the next place here; both write
the code they find into copied. The leading `</s>` is a sink that holds nothing: it wins where no
context agrees. The output layer, which is not tied to the embedding, reads copied.

Heads 2 and on read one context each, as far as there are heads: what it has at the next place,
whether it agrees or not. What that is good for (another hand draws the same flag in other codes)
training has to find out: they write it into the free channels through weights drawn at random.

Nothing else writes into these blocks at the start; the rest of the stream starts as usual. Only the
start is set: training may undo it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from racm3.generator.blocks import InductionBlocks, channels_of, induction_blocks
from racm3.generator.place_vectors import above, place_vectors
from racm3.sequence.places import PlaceTable

if TYPE_CHECKING:
    from racm3.generator.transformer import Generator

__all__ = ["start_image_embeddings", "start_induction"]

PLACE_GAIN, SLOT_GAIN, CODE_GAIN = 12.0, 5.0, 6.0
"""Nats that a match of the block adds to the logit of a key."""
SINK = 10.5
"""Nats of the sink, which LayerNorm makes louder than all else, its token being the quietest: what
is left of a place is about 10, of a place whose code agrees 15, of the sink 13 (at width 128)."""
COPY_LOGIT = 6.0
"""Logit of a code that one head has copied with full weight."""
QUIET = 0.3
"""Scale of what the output layer reads from blocks that hold no prediction."""


class _Match(NamedTuple):
    """A block of the query, turned, that is compared with a block of the key."""

    query: slice
    key: slice
    gain: float
    turn: Tensor | None = None


@torch.no_grad()
def start_induction(
    model: Generator,
    places: PlaceTable,
    grid: tuple[int, int],
    codebook: Tensor,
    *,
    generator: torch.Generator,
) -> None:
    """Gives the blocks and heads of the table above their start.

    Args:
        model: With positions "document", an output layer of its own, biases and two layers or more;
            changed in place.
        places: That it was built for.
        grid: Rows and columns of an image's codes.
        codebook: float [image_size, channels], of the image tokenizer.
        generator: CPU random generator of what is drawn.

    Raises:
        ValueError: The model lacks one of these, its heads are too small, or the codebook is
            another tokenizer's.
    """
    config = model.config
    if config.positions != "document" or config.tie_embeddings or not config.bias:
        raise ValueError(
            'An induction start needs positions "document", tie_embeddings false and biases; '
            "set them so, or leave it out."
        )
    if config.layers < 2:
        raise ValueError("An induction start needs two layers or more; add one, or leave it out.")
    blocks = induction_blocks(width=config.width, heads=config.heads, num_slots=config.num_slots)
    _start_places(model, blocks, place_vectors(places, grid, channels_of(blocks.own)))
    _start_tokens(
        model, blocks, _code_vectors(model, codebook, channels_of(blocks.code), generator)
    )
    up = above(grid, channels_of(blocks.own))
    for layer, block in enumerate(model.blocks):
        heads = _Heads(block, config.head_width, blocks)
        if layer == 0:
            _start_first_layer(heads, blocks, up)
        else:
            _start_copying(heads, blocks)
            _start_reading(heads, blocks, range(2, config.heads))


def _start_first_layer(heads: _Heads, blocks: InductionBlocks, up: Tensor) -> None:
    own = _Match(blocks.slot, blocks.slot, SLOT_GAIN)
    heads.start(0, [_Match(blocks.own, blocks.next, PLACE_GAIN), own], target=blocks.left)
    heads.start(1, [_Match(blocks.own, blocks.own, PLACE_GAIN, up), own], target=blocks.above)
    heads.start(2, [_Match(blocks.next, blocks.own, PLACE_GAIN, up), own], target=blocks.above_next)


def _start_copying(heads: _Heads, blocks: InductionBlocks) -> None:
    there = _Match(blocks.next, blocks.own, PLACE_GAIN)
    left = _Match(blocks.code, blocks.left, CODE_GAIN)
    upper = _Match(blocks.above_next, blocks.above, CODE_GAIN)
    heads.start(0, [there, left], target=blocks.copied, sink=SINK)
    heads.start(1, [there, upper], target=blocks.copied, sink=SINK)


def _start_reading(heads: _Heads, blocks: InductionBlocks, free_heads: Iterable[int]) -> None:
    """Slot 1 for the first of these heads, slot 2 for the second."""
    slots = channels_of(blocks.slot)
    there = _Match(blocks.next, blocks.own, PLACE_GAIN)
    for head, slot in zip(free_heads, range(1, slots), strict=False):
        asks = torch.zeros(slots, slots)
        asks[slot] = 1  # of whichever document the query is
        document = _Match(blocks.slot, blocks.slot, SLOT_GAIN, asks)
        heads.start(head, [there, document])


class _Heads:
    """The heads of one layer; channels of query and key are filled from the first on."""

    def __init__(self, block: Any, width: int, blocks: InductionBlocks) -> None:
        self.width, self.blocks = width, blocks
        qkv = block.attention.qkv
        self.weight, self.bias, self.out = qkv.weight, qkv.bias, block.attention.out.weight
        self.stream: int = self.weight.shape[1]
        self.out[: blocks.free.start] = 0
        block.ffn_out.weight[: blocks.free.start] = 0

    def start(
        self,
        head: int,
        matches: Sequence[_Match],
        *,
        target: slice | None = None,
        sink: float | None = None,
    ) -> None:
        """Sets a head to compare blocks, and to write the codes it finds into `target`.

        Without a target it writes them, and the values that it draws at random beside them, where
        its weights at random lead.
        """
        first, D = head * self.width, self.width
        query, key, value = (offset + first for offset in (0, self.stream, 2 * self.stream))
        for start in (query, key):
            self.weight[start : start + D] = 0
        used = 0
        for match in matches:
            self._compare(match, query + used, key + used)
            used += channels_of(match.query)
        if sink is not None:
            strength = (sink * D**0.5) ** 0.5
            self.bias[query + used] = strength
            self.weight[key + used, self.blocks.sink] = strength
        size = channels_of(self.blocks.code)
        self.weight[value : value + (D if target is not None else size)] = 0
        self.weight[value : value + size, self.blocks.code] = torch.eye(size)
        if target is not None:
            self.out[:, first : first + D] = 0
            self.out[target, first : first + size] = torch.eye(size)

    def _compare(self, match: _Match, query: int, key: int) -> None:
        """Logit = gain * mean over the blocks' channels of query * key (entries are about 1)."""
        size = channels_of(match.query)
        strength = (match.gain * self.width**0.5 / size) ** 0.5
        same = torch.eye(size)
        turn = same if match.turn is None else match.turn
        self.weight[query : query + size, match.query] = strength * turn
        self.weight[key : key + size, match.key] = strength * same


def _start_places(model: Generator, blocks: InductionBlocks, vectors: Tensor) -> None:
    for table, block in ((model.own_places, blocks.own), (model.next_places, blocks.next)):
        table.weight.zero_()
        table.weight[:, block] = vectors
    slots, count = model.slots.weight, model.config.num_slots
    slots[:, : blocks.free.start] = 0
    loudness = channels_of(blocks.free) ** 0.5
    slots *= loudness / slots.norm(dim=1, keepdim=True)  # no slot is louder than another
    slots[:, blocks.slot] = torch.eye(count) * count**0.5


def _start_tokens(model: Generator, blocks: InductionBlocks, codes: Tensor) -> None:
    assert model.output is not None
    tokens, output, width = model.tokens.weight, model.output.weight, model.config.width
    images, end = model.vocabulary.image_range, model.vocabulary.document_end_id
    tokens[:, : blocks.code.start] = 0
    tokens[:, blocks.left.start : blocks.free.start] = 0
    tokens[images.start : images.stop, blocks.code] = codes
    tokens[end, : blocks.free.start] = 0
    tokens[end, blocks.sink] = width**-0.5  # the embedding is multiplied by its inverse
    output[:, : blocks.free.start] *= QUIET
    gain = COPY_LOGIT / channels_of(blocks.code) * width**0.5
    output[:, blocks.copied] = tokens[:, blocks.code] * gain


@torch.no_grad()
def start_image_embeddings(
    model: Generator, codebook: Tensor, *, generator: torch.Generator
) -> None:
    """Starts the image codes' embeddings from the image tokenizer's codebook: likes start alike.

    Args:
        model: Changed in place.
        codebook: float [image_size, channels].
        generator: CPU random generator of the projection.

    Raises:
        ValueError: The codebook does not have `vocabulary.image_size` rows.
    """
    ids = model.vocabulary.image_range
    rows = _code_vectors(model, codebook, model.config.width, generator)
    model.tokens.weight[ids.start : ids.stop] = rows


def _code_vectors(
    model: Generator, codebook: Tensor, width: int, generator: torch.Generator
) -> Tensor:
    """The codebook centred and turned at random; [image_size, width], as large as random rows."""
    ids, std = model.vocabulary.image_range, model.config.width**-0.5
    if codebook.shape[0] != len(ids):
        raise ValueError(
            f"The codebook has {codebook.shape[0]} codes, the vocabulary {len(ids)}: "
            "use the codebook of the tokenizer that made the image tokens."
        )
    values = codebook.detach().cpu().float()
    channels = values.shape[1]
    projection = torch.randn(width, channels, generator=generator)
    if channels <= width:
        projection, _ = torch.linalg.qr(projection)
    projected = (values - values.mean(0)) @ projection.T
    scaled: Tensor = projected * (std / projected.std().clamp_min(1e-12))
    return scaled.to(model.tokens.weight)
