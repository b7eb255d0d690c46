"""The generator: a pre-norm decoder.

Shapes: B rows, T tokens, C width, V vocabulary, n predictions.

Positions "document" are ours, for small models: the input is token + own place + next place + slot,
all documents sharing the place tables. Rotary positions had not learned to look at a context in
minutes where these had, since a copy needs one match only: my next place against your own place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from racm3.generator.attention import Attention
from racm3.generator.cache import Cache
from racm3.generator.config import GeneratorConfig
from racm3.generator.initial_weights import InitConfig, initialise
from racm3.sequence.packing import Samples
from racm3.vocabulary import Vocabulary


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: GeneratorConfig, layer: int) -> None:
        """Builds block number `layer`."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.attention = Attention(config, layer)
        self.ffn_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.ffn_in = nn.Linear(config.width, config.ffn_width, bias=config.bias)
        self.ffn_out = nn.Linear(config.ffn_width, config.width, bias=config.bias)
        self.dropout = config.dropout
        self.activation = functional.relu if config.activation == "relu" else functional.gelu

    def forward(self, x: Tensor, cache: Cache | None, samples: Samples | None = None) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x = x + self._drop(self.attention(self.attention_norm(x), cache, samples))
        hidden = self.activation(self.ffn_in(self.ffn_norm(x)))
        return x + self._drop(self.ffn_out(hidden))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


class Generator(nn.Module):
    """Next-token logits of a sequence of documents."""

    def __init__(
        self,
        config: GeneratorConfig,
        vocabulary: Vocabulary,
        *,
        generator: torch.Generator,
        init: InitConfig | None = None,
    ) -> None:
        """Builds and initialises it.

        Args:
            config: Shape.
            vocabulary: The id space.
            generator: CPU random generator of the initial weights.
            init: How they are drawn; `None` = by default.
        """
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.tokens = nn.Embedding(vocabulary.size, config.width)
        if config.positions == "document":
            self.own_places = nn.Embedding(config.num_places, config.width)
            self.next_places = nn.Embedding(config.num_places, config.width)
            self.slots = nn.Embedding(config.num_slots, config.width)
        elif config.positions == "sequence":
            self.sequence_places = nn.Embedding(config.max_length, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=config.bias)
        self.output: nn.Embedding | None = None
        if not config.tie_embeddings:
            self.output = nn.Embedding(vocabulary.size, config.width)
        initialise(self, config, init or InitConfig(), generator=generator)

    def compile_blocks(self) -> None:
        """Compiles each block's forward pass with `torch.compile`, in place.

        Block by block: the blocks share one compilation, which takes seconds where the whole model
        takes minutes. Modules and the names of their weights stay as they are.
        """
        for block in self.blocks:
            block.compile()

    def forward(
        self,
        input_ids: Tensor,
        places: Tensor | None = None,
        next_places: Tensor | None = None,
        slots: Tensor | None = None,
        *,
        cache: Cache | None = None,
        keep: Tensor | None = None,
        samples: Samples | None = None,
    ) -> Tensor:
        """Reads tokens and predicts the next of each.

        Args:
            input_ids: int64 [B, T]; padding on the right only.
            places: int64 [B, T], own places. Needed by positions "document", else ignored.
            next_places: int64 [B, T], places of the tokens to be predicted. Likewise.
            slots: int64 [B, T], 0 = main document, i = i-th context. Likewise.
            cache: What was read before; extended by these tokens.
            keep: bool [B, T]: predict at these positions only (the output layer is a large part
                of a small model's work).
            samples: Where the samples of packed rows stand; `None` = each row is one. No token
                sees another sample, and positions start anew in each.

        Returns:
            Logits [B, T, V]; with `keep`, [n, V] in row-major order of the n positions kept.

        Raises:
            ValueError: Positions "document" without places, a sequence over `max_length`, or
                packed rows with a cache.
        """
        if cache is not None and samples is not None:
            raise ValueError("A cache holds one sample a row: give no packed rows with it.")
        x = self._embed(input_ids, places, next_places, slots, cache, samples)
        if self.config.dropout:
            x = functional.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            if self.config.checkpoint_activations and self.training and cache is None:
                x = checkpoint(block, x, None, samples, use_reentrant=False)
            else:
                x = block(x, cache, samples)
        if cache is not None:
            cache.length += input_ids.shape[1]
        if keep is not None:
            x = x.flatten(0, 1).index_select(0, keep.flatten().nonzero()[:, 0])
        output = self.tokens if self.output is None else self.output
        logits: Tensor = functional.linear(self.norm(x), output.weight)
        return logits

    def _embed(
        self,
        ids: Tensor,
        places: Tensor | None,
        next_places: Tensor | None,
        slots: Tensor | None,
        cache: Cache | None = None,
        samples: Samples | None = None,
    ) -> Tensor:
        x: Tensor = self.tokens(ids) * math.sqrt(self.config.width)
        if self.config.positions == "document":
            if places is None or next_places is None or slots is None:
                raise ValueError('Positions "document" need places, next_places and slots.')
            own_slots = slots.clamp(max=self.config.num_slots - 1)
            x = x + self.own_places(places) + self.next_places(next_places) + self.slots(own_slots)
            return x
        if self.config.positions == "sequence":
            start = cache.length if cache is not None else 0
            stop = start + ids.shape[1] if samples is None else samples.longest
            positions = None if cache is None else cache.positions(ids.shape[1])
            if stop > self.config.max_length:
                raise ValueError(
                    f"A sequence of {stop} tokens is longer than max_length "
                    f"{self.config.max_length}: raise GeneratorConfig.max_length."
                )
            if samples is not None:
                x = x + self.sequence_places(samples.offsets)
            elif positions is not None:
                x = x + self.sequence_places(positions)
            else:
                x = x + self.sequence_places.weight[start:stop]
        return x
