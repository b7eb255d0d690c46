"""The batch: what the generator reads and what its loss compares with.

Dimensions: B rows, T positions, one less than the longest row (inputs and labels overlap by all
but one token). Padding is on the right, with weight 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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

    @classmethod
    def of_rows(cls, rows: Sequence[Row], *, pad_id: int) -> Batch:
        """Pads rows to the longest and splits each into inputs and labels.

        Raises:
            ValueError: when there is no row.
        """
        if not rows:
            raise ValueError("a batch needs at least one row")
        last = slice(None, -1)
        first = slice(1, None)
        return cls(
            input_ids=_stack([row.inputs[last] for row in rows], pad_id),
            labels=_stack([row.ids[first] for row in rows], pad_id),
            weights=_stack([row.weights[first] for row in rows], 0),
            is_main=_stack([row.is_main[first] for row in rows], 0),
            modality=_stack([row.modality[first] for row in rows], 0),
            places=_stack([row.places[last] for row in rows], 0),
            next_places=_stack([row.next_places[last] for row in rows], 0),
            slots=_stack([row.slots[last] for row in rows], 0),
            positions=_stack([np.arange(len(row.ids) - 1) for row in rows], 0),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return Batch(**moved)

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


def digest_of_rows(rows: Iterable[Row]) -> str:
    """`digest_of_ids` of rows."""
    return digest_of_ids(map(ids_read, rows))


def _stack(rows: Sequence[NDArray[np.generic]], fill: int) -> Tensor:
    """Rows of any lengths -> [B, longest], filled on the right."""
    stacked = np.full((len(rows), max(map(len, rows))), fill, dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        stacked[index, : len(row)] = row
    return torch.from_numpy(stacked)
