"""Causal self-attention.

Shapes: B rows, T tokens, H heads, D channels of a head, C = H * D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from racm3.generator.cache import Cache
from racm3.generator.config import GeneratorConfig

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

    def forward(self, x_BTC: Tensor, cache: Cache | None) -> Tensor:
        """Returns [B, T, C]; with a cache, the T tokens come after those it holds."""
        B, T, C = x_BTC.shape
        q, k, v = (
            part.view(B, T, self.heads, self.head_width).transpose(1, 2)
            for part in self.qkv(x_BTC).split(C, dim=-1)
        )
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        start = cache.length if cache is not None else 0
        if self.rope:
            q, k = rotate(q, start), rotate(k, start)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        mask = _causal_mask(T, start, q.device) if start and T > 1 else None
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=not start and T > 1
        )
        return self.out(attended.transpose(1, 2).reshape(B, T, C))  # type: ignore[no-any-return]


def rotate(x_BHTD: Tensor, start: int) -> Tensor:
    """Rotary positions (arXiv:2104.09864), halves paired, from position `start` on."""
    T, D = x_BHTD.shape[-2:]
    positions = torch.arange(start, start + T, device=x_BHTD.device, dtype=torch.float32)
    exponents = torch.arange(0, D, 2, device=x_BHTD.device, dtype=torch.float32) / D
    angles = positions[:, None] * torch.exp(-math.log(_ROPE_BASE) * exponents)
    cos, sin = angles.cos().to(x_BHTD.dtype), angles.sin().to(x_BHTD.dtype)
    first, second = x_BHTD.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _causal_mask(length: int, start: int, device: torch.device) -> Tensor:
    """True where query t (position start + t) may see key s: bool [T, start + T]."""
    return torch.ones(length, start + length, dtype=torch.bool, device=device).tril(start)
