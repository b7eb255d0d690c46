"""Causal self-attention.

Shapes: B rows, T tokens, H heads, D channels of a head, C = H * D. Packed rows are read sample by
sample (`racm3.sequence.packing`): S samples of at most L tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from racm3.generator.cache import Cache
from racm3.generator.config import GeneratorConfig
from racm3.sequence.packing import Samples

_ROPE_BASE = 10000.0


class Attention(nn.Module):
    """Multi-head attention by `scaled_dot_product_attention`; rotary and QK-norm by config."""

    def __init__(self, config: GeneratorConfig, layer: int) -> None:
        """Builds layer number `layer` (its place in a cache)."""
        super().__init__()
        self.layer, self.heads, self.head_width = layer, config.heads, config.head_width
        self.dropout = config.dropout
        self.rope = config.positions == "rope"
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)
        self.query_norm = nn.RMSNorm(self.head_width) if config.qk_norm else None
        self.key_norm = nn.RMSNorm(self.head_width) if config.qk_norm else None

    def forward(self, x_BTC: Tensor, cache: Cache | None, samples: Samples | None = None) -> Tensor:
        """Returns [B, T, C]; with a cache, the T tokens come after those it holds.

        With `samples`, each token attends to those of its own sample.
        """
        qkv = self.qkv(x_BTC)
        attended = self._attend(qkv, cache) if samples is None else self._by_sample(qkv, samples)
        return self.out(attended)  # type: ignore[no-any-return]

    # the number of groups and their sizes change from batch to batch: not to be compiled
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _by_sample(self, qkv: Tensor, samples: Samples) -> Tensor:
        """[B, T, 3 C] -> [B, T, C]; what stands at padding means nothing."""
        B, T, C3 = qkv.shape
        shapes, taken, empty, put, padding, _ = samples
        read = pick(qkv.flatten(0, 1), taken, put, padding)
        grids = torch.split(read, [S * L for S, L in shapes])
        parts = [
            self._attend(grid.view(S, L, C3), None).flatten(0, 1)
            for grid, (S, L) in zip(grids, shapes, strict=True)
        ]
        return pick(torch.cat(parts), put, taken, empty).view(B, T, C3 // 3)

    def _attend(self, qkv: Tensor, cache: Cache | None) -> Tensor:
        """[B, T, 3 C] -> [B, T, C], from the row's first token on, or from where the cache ends."""
        B, T, C3 = qkv.shape
        q, k, v = (
            part.view(B, T, self.heads, self.head_width).transpose(1, 2)
            for part in qkv.chunk(3, dim=-1)
        )
        if self.query_norm is not None and self.key_norm is not None:
            q, k = _normed(q, self.query_norm), _normed(k, self.key_norm)
        start = cache.length if cache is not None else 0
        mask = None if cache is None else cache.visible(T)
        if mask is None and start and T > 1:
            mask = _causal_mask(T, start, q.device)
        if self.rope:
            where = start if cache is None else cache.positions(T)
            where = start if where is None else where
            q, k = rotate(q, where), rotate(k, where)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=start == 0 and mask is None
        )
        return attended.transpose(1, 2).reshape(B, T, C3 // 3)


def _normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """In the type of x: of two types the norm would not be computed in one pass (it says so)."""
    weight = norm.weight.to(x.dtype)
    return functional.rms_norm(x, (x.shape[-1],), weight, norm.eps).to(x.dtype)


def pick(x: Tensor, index: Tensor, back: Tensor, unread: Tensor) -> Tensor:
    """Rows of x by index [n], with a gradient that is picked, too.

    Where every row counts once at most, the gradient of row i is that of output `back[i]`: to read
    it takes a fraction of the time of adding up, which `index_select` would do.

    Args:
        x: [m, C].
        index: int64 [n], rows of x.
        back: int64 [m], for each row of x its output.
        unread: int64, rows of x that no output which counts is read from: their gradient is 0.
    """
    picked: Tensor = _Pick.apply(x, index, back, unread)
    return picked


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, unread: Tensor) -> Tensor:
        ctx.save_for_backward(back, unread)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        back, unread = ctx.saved_tensors
        return gradients[0].index_select(0, back).index_fill_(0, unread, 0), None, None, None


def rotate(x_BHTD: Tensor, start: int | Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864), halves paired.

    Args:
        x_BHTD: Queries or keys.
        start: Position of the first token of all rows, or positions of all tokens, int64 [B, T].
    """
    T, D = x_BHTD.shape[-2:]
    device = x_BHTD.device
    if isinstance(start, Tensor):
        positions = start[:, None].to(torch.float32)
    else:
        positions = torch.arange(start, start + T, device=device, dtype=torch.float32)
    exponents = torch.arange(0, D, 2, device=device, dtype=torch.float32) / D
    angles = positions[..., None] * torch.exp(-math.log(_ROPE_BASE) * exponents)
    cos, sin = angles.cos().to(x_BHTD.dtype), angles.sin().to(x_BHTD.dtype)
    first, second = x_BHTD.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _causal_mask(length: int, start: int, device: torch.device) -> Tensor:
    """True where query t (position start + t) may see key s: bool [T, start + T]."""
    return torch.ones(length, start + length, dtype=torch.bool, device=device).tril(start)
