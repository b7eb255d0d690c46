"""Packing: several samples in one row, and where attention finds each of them again.

A row is filled with whole samples; nothing is cut, nothing dropped. All layers but attention treat
tokens one by one and run on rows. Attention runs on samples: they are taken from the rows, those of
about one length together, and put back. Plain causal attention then cannot cross samples (it never
has two of them at once), every kernel that knows causal attention will do, on any device, and what
is computed is the samples' lengths squared. The alternatives need more for less: a dense mask costs
the row's length squared in memory and rules the fast kernels out; `flex_attention` has to be
compiled and has no gradient on a CPU; nested tensors and variable-length kernels are prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Samples", "pack", "samples_of"]

_ALIKE = 0.75
"""Samples of a group are at least this share of its longest one."""


class Samples(NamedTuple):
    """Where the samples of packed rows stand. B rows of T positions, numbered row by row: N = B T.

    A group of S samples, the longest of L tokens, is a grid of S L places; all groups have M places
    one after another. A tuple of tensors, so that what moves tensors (DDP, FSDP) knows its way in.
    """

    shapes: tuple[tuple[int, int], ...]
    """(S, L) of each group, the longest samples first."""
    taken: Tensor
    """int64 [M]: the position whose token stands at each place; at an empty one, its sample's
    first."""
    empty: Tensor
    """int64 [E]: places past the end of their sample. Causal attention shows them to no other."""
    put: Tensor
    """int64 [N]: the place of each position; 0 for padding."""
    padding: Tensor
    """int64 [P]: positions of no sample."""
    offsets: Tensor
    """int64 [B, T]: tokens of its sample before each position; 0 for padding."""

    def to(self, device: torch.device | str) -> Samples:
        """The same on another device."""
        return Samples(self.shapes, *(tensor.to(device) for tensor in self[1:]))

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(length for _, length in self.shapes)

    @property
    def squares(self) -> int:
        """Sum of the samples' lengths squared: pairs of tokens that attend, causality aside."""
        return int((2 * self.offsets + 1).sum()) - len(self.padding)

    @property
    def padding_share(self) -> float:
        """Share of the positions that hold no token."""
        return len(self.padding) / self.offsets.numel()


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which samples share a row: few rows, filled evenly. Depends on the lengths alone.

    Rows are as many as first fit needs, longest sample first: at most 11/9 of the fewest possible,
    and one. Then each sample goes to the row that is emptiest, unless that makes a row longer.

    Args:
        lengths: positions that each sample takes, >= 1.
        room: most positions of a row.

    Returns:
        Indices of the samples, row by row.

    Raises:
        ValueError: when a sample is longer than a row may be.
    """
    if lengths and max(lengths) > room:
        raise ValueError(
            f"a sample of {max(lengths)} tokens does not fit a row of {room}: make rows longer"
        )
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    fitted: list[list[int]] = []
    filled: list[int] = []
    for sample in order:
        free = (i for i, held in enumerate(filled) if held + lengths[sample] <= room)
        row = next(free, len(fitted))
        if row == len(fitted):
            fitted.append([])
            filled.append(0)
        fitted[row].append(sample)
        filled[row] += lengths[sample]
    even: list[list[int]] = [[] for _ in fitted]
    held = [0] * len(fitted)
    for sample in order:
        row = held.index(min(held))
        even[row].append(sample)
        held[row] += lengths[sample]
    return even if max(held, default=0) < max(filled, default=0) else fitted


def samples_of(rows: Sequence[Sequence[int]], width: int) -> Samples:
    """Where samples of these lengths stand, row by row from the left.

    Args:
        rows: lengths of each row's samples, in order.
        width: T, positions of a row.
    """
    ends = [np.cumsum(row) for row in rows]
    lengths = np.array([length for row in rows for length in row])
    starts = np.concatenate([i * width + end for i, end in enumerate(ends)]) - lengths
    grids = [_grid(starts[group], lengths[group]) for group in _groups(lengths)]
    taken = np.concatenate([grid.ravel() for grid, _ in grids])
    filled = np.concatenate([held.ravel() for _, held in grids])
    put, offsets = np.full(len(rows) * width, -1), np.zeros(len(rows) * width, dtype=np.int64)
    put[taken[filled]] = np.flatnonzero(filled)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        offsets[start : start + length] = np.arange(length)
    return Samples(
        shapes=tuple((len(grid), grid.shape[1]) for grid, _ in grids),
        taken=torch.from_numpy(taken),
        empty=torch.from_numpy(np.flatnonzero(~filled)),
        put=torch.from_numpy(np.maximum(put, 0)),
        padding=torch.from_numpy(np.flatnonzero(put < 0)),
        offsets=torch.from_numpy(offsets).view(len(rows), width),
    )


def _groups(lengths: NDArray[np.int64]) -> list[list[int]]:
    """Samples of about one length together, longest first."""
    groups: list[list[int]] = []
    for sample in np.argsort(-lengths, kind="stable").tolist():
        if not groups or lengths[sample] < _ALIKE * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(sample)
    return groups


def _grid(
    starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Position at each place of a group, and whether the sample reaches so far; [S, L] each."""
    steps = np.arange(lengths.max())
    held = steps < lengths[:, None]
    return starts[:, None] + np.where(held, steps, 0), held
