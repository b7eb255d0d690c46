from __future__ import annotations

import math

import pytest
import torch

from racm3.generator.attention import Attention, pick, rotate
from racm3.generator.config import GeneratorConfig
from racm3.sequence.packing import samples_of


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


@pytest.mark.parametrize("rope", [False, True])
def test_packed_attention_is_that_of_a_mask_by_sample(rope):
    torch.manual_seed(0)
    config = GeneratorConfig(layers=1, width=12, heads=3, positions="rope" if rope else "sequence")
    attention, rows = Attention(config, 0), [[4, 3], [7], [2, 2, 2]]
    x, samples = torch.randn(3, 7, 12), samples_of(rows, 7)
    number = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in
                           [[4, 3], [7], [2, 2, 2, 1]]])  # fmt: skip
    allowed = (number[:, :, None] == number[:, None]) & torch.ones(7, 7, dtype=torch.bool).tril()
    q, k, v = attention.qkv(x).view(3, 7, 3, 3, 4).unbind(2)
    if rope:
        turned = [[rotate(one[None, None], int(start))[0, 0] for one, start in
                   zip(part.unbind(0), samples.offsets.flatten(), strict=True)]
                  for part in (q.reshape(21, 3, 1, 4), k.reshape(21, 3, 1, 4))]  # fmt: skip
        q, k = (torch.stack(part).view(3, 7, 3, 4) for part in turned)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / 2
    weights = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1)
    expected = attention.out(torch.einsum("bhts,bshd->bthd", weights, v).reshape(3, 7, 12))
    with torch.no_grad():
        found = attention(x, None, samples)
    held = torch.ones(21, dtype=torch.bool)
    held[samples.padding] = False
    torch.testing.assert_close(found.view(21, 12)[held], expected.view(21, 12)[held])


def test_a_picked_gradient_is_the_one_that_is_added_up():
    index, back, unread = torch.tensor([2, 0, 3, 0]), torch.tensor([1, 0, 0, 2]), torch.tensor([1])
    weight = torch.tensor([[1.0], [2.0], [3.0], [0.0]])  # the last output counts for nothing
    gradients = []
    for reads in (lambda x: x.index_select(0, index), lambda x: pick(x, index, back, unread)):
        x = torch.arange(8.0).view(4, 2).requires_grad_()
        (reads(x).square() * weight).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
