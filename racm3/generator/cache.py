"""Keys and values of what was read: one buffer a layer, filled from the left.

Shapes: B rows, H heads, T tokens so far, D channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from racm3.generator.config import GeneratorConfig


class Cache:
    """Room for B sequences of at most `capacity` tokens; all rows hold equally many."""

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
        """Tokens held; the generator advances it after a forward pass."""

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
