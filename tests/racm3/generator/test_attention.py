from __future__ import annotations

import math

import pytest
import torch

from racm3.generator.attention import Attention, rotate
from racm3.generator.config import GeneratorConfig


def reference(attention, x):
    """Each token over itself and those before it, written out."""
    B, T, C = x.shape
    H, D = attention.heads, attention.head_width
    q, k, v = attention.qkv(x).view(B, T, 3, H, D).unbind(2)
    if attention.query_norm is not None:
        q, k = attention.query_norm(q), attention.key_norm(k)
    out = torch.zeros(B, T, H, D)
    for t in range(T):
        scores = torch.einsum("bhd,bshd->bhs", q[:, t], k[:, : t + 1]) / math.sqrt(D)
        out[:, t] = torch.einsum("bhs,bshd->bhd", scores.softmax(-1), v[:, : t + 1])
    return attention.out(out.reshape(B, T, C))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_what_the_formula_says(qk_norm):
    torch.manual_seed(0)
    attention = Attention(GeneratorConfig(layers=1, width=12, heads=3, qk_norm=qk_norm), 0)
    x = torch.randn(2, 6, 12)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, None), reference(attention, x))


@pytest.mark.parametrize("shift", [1, 7, 100])
def test_rotary_products_know_distances_alone(shift):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 5, 8, generator=generator).unbind(0)
    here = rotate(q, 0) @ rotate(k, 0).transpose(-1, -2)
    there = rotate(q, shift) @ rotate(k, shift).transpose(-1, -2)
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotate(q, shift).norm(dim=-1), q.norm(dim=-1))


def test_rotating_in_parts_is_rotating_at_once():
    x = torch.randn(1, 2, 9, 6, generator=torch.Generator().manual_seed(0))
    parts = torch.cat([rotate(x[:, :, :4], 3), rotate(x[:, :, 4:], 7)], 2)
    torch.testing.assert_close(rotate(x, 3), parts)
