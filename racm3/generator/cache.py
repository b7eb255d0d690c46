"""Keys and values of what was read: one buffer a layer, filled from the left.

Rows of different lengths end at the same place: a shorter one begins later, and what stands before
it is never looked at.

Shapes: B rows, H heads, T tokens so far, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from racm3.generator.config import GeneratorConfig


class Cache:
    """Room for B sequences of at most `capacity` tokens; all rows end at the same place."""

    def __init__(
        self,
        config: GeneratorConfig,
        *,
        rows: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Makes empty buffers [layers, 2, B, H, capacity, D]."""
        shape = (config.layers, 2, rows, config.heads, capacity, config.head_width)
        self._buffer = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
        """Where all rows end; the generator advances it after a forward pass."""
        self.begins: Tensor | None = None
        """Where each row begins, int64 [B]; None: all at 0, so that `length` tokens are held."""

    @classmethod
    def joined(cls, parts: Sequence[Cache], *, room: int) -> Cache:
        """The rows of several caches, in order, with room for so many tokens more.

        Args:
            parts: Of one generator, each with rows that begin at 0.
            room: Tokens that may still come, >= 0.
        """
        length = max(part.length for part in parts)
        buffers = [part._buffer[..., : part.length, :] for part in parts]
        layers, two, _, heads, _, width = buffers[0].shape
        rows = sum(buffer.shape[2] for buffer in buffers)
        made = cls.__new__(cls)
        made._buffer = buffers[0].new_zeros(layers, two, rows, heads, length + room, width)
        row, begins = 0, []
        for buffer in buffers:
            count, held = buffer.shape[2], buffer.shape[4]
            made._buffer[:, :, row : row + count, :, length - held : length] = buffer
            begins += [length - held] * count
            row += count
        made.length = length
        made.begins = torch.tensor(begins, device=buffers[0].device) if any(begins) else None
        return made

    @property
    def capacity(self) -> int:
        """Most tokens it can hold."""
        return self._buffer.shape[4]

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends keys and values [B, H, t, D] of one layer; returns all [B, H, length + t, D].

        Raises:
            ValueError: There is no room for t more tokens.
        """
        stop = self.length + key.shape[2]
        if stop > self.capacity:
            raise ValueError(f"The cache has room for {self.capacity} tokens, not {stop}.")
        self._buffer[layer, 0, :, :, self.length : stop] = key
        self._buffer[layer, 1, :, :, self.length : stop] = value
        return self._buffer[layer, 0, :, :, :stop], self._buffer[layer, 1, :, :, :stop]

    def select(self, rows: Tensor) -> None:
        """Keeps (or repeats) rows in the order given, int64 [B']."""
        self._buffer = self._buffer[:, :, rows]
        if self.begins is not None:
            self.begins = self.begins[rows]

    def positions(self, count: int) -> Tensor | None:
        """Places of the next tokens in their rows, int64 [B, count]; None: all rows begin at 0."""
        if self.begins is None:
            return None
        ends = torch.arange(self.length, self.length + count, device=self.begins.device)
        return ends - self.begins[:, None]

    def visible(self, count: int) -> Tensor | None:
        """What the next tokens see, bool [B, 1, count, length + count]; None: all before them.

        Called before they are put in.
        """
        if self.begins is None:
            return None
        stop = self.length + count
        seen = torch.ones(count, stop, dtype=torch.bool, device=self.begins.device)
        inside = torch.arange(stop, device=self.begins.device) >= self.begins[:, None]
        return seen.tril(self.length)[None, None] & inside[:, None, None]
