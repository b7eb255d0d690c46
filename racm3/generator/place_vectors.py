"""Vectors of places whose inner products say "the same place", and of which "above" is a rotation.

A cell (row, column) of the image's grid is [rotary(row) | rotary(column)], where rotary(n) is
(cos w_k n, sin w_k n) for frequencies w_k = 2 pi (k + 1/2) / N, as in sinusoidal positions
(arXiv:1706.03762) but evenly spread: numbers that differ by less than N are then orthogonal where
there are N channels, and nearly so where there are fewer. Token t of a caption is the negative of
cell t, so that no word is taken for a cell. Separators have no cell: their vectors are 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from racm3.sequence.places import PlaceTable

__all__ = ["above", "place_vectors"]


def place_vectors(places: PlaceTable, grid: tuple[int, int], channels: int) -> Tensor:
    """Vectors of all places, of norm sqrt(channels) or 0, [places.size, channels].

    Args:
        places: Which places there are.
        grid: Rows and columns of the image codes.
        channels: A multiple of 4.
    """
    columns = grid[1]
    vectors = torch.zeros(places.size, channels)
    for first, count, sign in (
        (places.text_base, places.max_text_tokens + 1, -1.0),
        (places.image_base, places.image_tokens, 1.0),
    ):
        cells = torch.arange(count)
        rows = _rotary(cells // columns, channels // 2, grid[0])
        vectors[first : first + count] = sign * torch.cat(
            [rows, _rotary(cells % columns, channels // 2, columns)], dim=1
        )
    return vectors


def above(grid: tuple[int, int], channels: int) -> Tensor:
    """[channels, channels]: maps the vector of a cell to that of the cell above it."""
    half = channels // 2
    matrix = torch.eye(channels)
    for k, frequency in enumerate(_frequencies(half, grid[0]).tolist()):
        cosine, sine = math.cos(frequency), math.sin(frequency)
        turn = torch.tensor([[cosine, sine], [-sine, cosine]])
        matrix[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = turn
    return matrix


def _rotary(numbers: Tensor, channels: int, count: int) -> Tensor:
    """[n] -> [n, channels], of norm sqrt(channels)."""
    angles = numbers[:, None] * _frequencies(channels, count)
    return torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1) * 2**0.5


def _frequencies(channels: int, count: int) -> Tensor:
    pairs = channels // 2
    return 2 * math.pi * (torch.arange(pairs) + 0.5) / max(count, channels)
