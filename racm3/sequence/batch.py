"""The batch: what the generator reads and what its loss compares with.

Dimensions: B rows, T positions. A sample of L tokens takes L - 1 of them (inputs and labels overlap
by all but one token): a row holds one sample, or several packed side by side. Padding is on the
right, with weight 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from racm3.sequence.packing import Samples, pack, samples_of


class Modality(IntEnum):
    """What kind of token an id is."""

    SPECIAL = 0
    TEXT = 1
    IMAGE = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sample as fed, all arrays of length L (numpy): token t of each describes token t.

    `Batch.of_rows` splits it into inputs (all but the last) and labels (all but the first).
    """

    ids: NDArray[np.int64]
    """Ids in the order the generator reads them: after masking."""

    weights: NDArray[np.float32]
    """Weight of predicting this token. 1 main, alpha context, 0 sentinel."""

    is_main: NDArray[np.bool_]
    """Whether the token belongs to the main document."""

    modality: NDArray[np.int8]
    """`Modality` of the token."""

    places: NDArray[np.int64]
    """Own place of the token (`racm3.sequence.places`)."""

    next_places: NDArray[np.int64]
    """Place expected of the token after it, as far as what was written so far tells."""

    slots: NDArray[np.int64]
    """Slot of the document it belongs to: 0 = main, i = i-th context in the order fed."""

    read: NDArray[np.int64] | None = None
    """Ids that are read in place of `ids`; None: the same. Labels are always `ids`."""

    @property
    def inputs(self) -> NDArray[np.int64]:
        """Ids as they are read."""
        return self.ids if self.read is None else self.read


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Torch tensors, all [B, T].

    Of inputs: ids, places, next_places, slots, positions. The rest is of labels.
    """

    input_ids: Tensor
    """int64, 0..vocabulary.size-1."""

    labels: Tensor
    """int64: the next token of the permuted (masked) sequence."""

    weights: Tensor
    """float32: 0 padding and sentinels, alpha labels in contexts, 1 labels of the main document."""

    is_main: Tensor
    """bool: the label belongs to the main document (False for padding)."""

    modality: Tensor
    """int8 `Modality` of the label."""

    places: Tensor
    """int64: own place of the input token."""

    next_places: Tensor
    """int64: place expected of the label, computed from the inputs so far."""

    slots: Tensor
    """int64: slot of the input token's document; 0 = main, i = i-th context."""

    positions: Tensor
    """int64: index of the input token in its sample, as masked."""

    samples: Samples | None = None
    """Where the samples of packed rows stand; None: every row is one sample."""

    @classmethod
    def of_rows(cls, rows: Sequence[Row], *, pad_id: int) -> Batch:
        """One sample a row, padded to the longest.

        Raises:
            ValueError: when there is no row.
        """
        columns = _columns([[row] for row in rows], pad_id)
        return cls(**columns, positions=_stack([[np.arange(len(row.ids) - 1)] for row in rows], 0))

    @classmethod
    def packed(cls, rows: Sequence[Row], *, length: int, pad_id: int) -> Batch:
        """Samples packed into rows of `length` positions at most; none is cut or left out.

        Which share a row follows from their lengths alone (`racm3.sequence.packing.pack`). The
        batch is as wide as its fullest row: what all rows leave empty is not computed.
        `samples.padding_share` says what some do.

        Raises:
            ValueError: when there is no row, or one takes more than `length` positions.
        """
        lengths = [len(row.ids) - 1 for row in rows]
        bins = pack(lengths, length)
        columns = _columns([[rows[i] for i in members] for members in bins], pad_id)
        places = [[lengths[i] for i in members] for members in bins]
        samples = samples_of(places, columns["labels"].shape[1])
        return cls(**columns, positions=samples.offsets, samples=samples)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same change to every tensor [B, T]; where samples stand is not kept."""
        names = (field.name for field in fields(self) if field.name != "samples")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return Batch(**changed)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = self.each(lambda tensor: tensor.to(device))
        return moved if self.samples is None else replace(moved, samples=self.samples.to(device))

    @property
    def num_main_tokens(self) -> int:
        """Labels of the main document that carry weight: the denominator of the loss."""
        return int((self.is_main & (self.weights > 0)).sum())

    @property
    def num_tokens(self) -> int:
        """Labels that carry weight, contexts included."""
        return int((self.weights > 0).sum())


def ids_read(row: Row) -> bytes:
    """The ids of a row as they are read: int64, little-endian."""
    return np.ascontiguousarray(row.inputs, dtype="<i8").tobytes()


def digest_of_ids(rows: Iterable[bytes]) -> str:
    """sha256 (hex) of `ids_read`, row by row with their lengths: equal means the same batch."""
    digest = hashlib.sha256()
    for ids in rows:
        digest.update((len(ids) // 8).to_bytes(8, "little"))
        digest.update(ids)
    return digest.hexdigest()


def _columns(rows: Sequence[Sequence[Row]], pad_id: int) -> dict[str, Any]:
    """Rows of samples as tensors [B, T]: each sample split into inputs and labels."""
    if not rows:
        raise ValueError("a batch needs at least one row")
    last, first = slice(None, -1), slice(1, None)
    return {
        "input_ids": _stack([[sample.inputs[last] for sample in row] for row in rows], pad_id),
        "labels": _stack([[sample.ids[first] for sample in row] for row in rows], pad_id),
        "weights": _stack([[sample.weights[first] for sample in row] for row in rows], 0),
        "is_main": _stack([[sample.is_main[first] for sample in row] for row in rows], 0),
        "modality": _stack([[sample.modality[first] for sample in row] for row in rows], 0),
        "places": _stack([[sample.places[last] for sample in row] for row in rows], 0),
        "next_places": _stack([[sample.next_places[last] for sample in row] for row in rows], 0),
        "slots": _stack([[sample.slots[last] for sample in row] for row in rows], 0),
    }


def _stack(rows: Sequence[Sequence[NDArray[np.generic]]], fill: int) -> Tensor:
    """Pieces side by side, row by row -> [B, widest], filled on the right."""
    joined = [np.concatenate(row) for row in rows]
    stacked = np.full((len(joined), max(map(len, joined))), fill, dtype=joined[0].dtype)
    for index, row in enumerate(joined):
        stacked[index, : len(row)] = row
    return torch.from_numpy(stacked)
