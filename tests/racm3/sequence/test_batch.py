from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from racm3.sequence.batch import Batch, Row, digest_of_ids, ids_read


def digest(rows):
    return digest_of_ids(map(ids_read, rows))


def row(length, start=5):
    return Row(
        ids=np.arange(start, start + length),
        weights=np.linspace(0.5, 1, length, dtype=np.float32),
        is_main=np.arange(length) > 1,
        modality=np.full(length, 2, dtype=np.int8),
        places=np.arange(length) + 100,
        next_places=np.arange(length) + 200,
        slots=np.ones(length, dtype=np.int64),
    )


def test_inputs_and_labels_are_shifted_by_one_and_padded_right():
    batch = Batch.of_rows([row(4), row(3)], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [5, 6, 0]]
    assert batch.labels.tolist() == [[6, 7, 8], [6, 7, 0]]
    assert batch.places.tolist() == [[100, 101, 102], [100, 101, 0]]
    assert batch.next_places.tolist() == [[200, 201, 202], [200, 201, 0]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert batch.weights[1].tolist() == [0.75, 1.0, 0.0]
    assert batch.is_main.tolist() == [[False, True, True], [False, True, False]]
    assert batch.num_main_tokens == 3
    assert batch.num_tokens == 5


def test_every_label_is_the_next_id_and_brings_what_belongs_to_it(cases):
    names = ("weights", "is_main", "modality")
    for rng in cases:
        rows = [row(int(rng.integers(2, 9)), int(rng.integers(1, 50))) for _ in range(3)]
        batch = Batch.of_rows(rows, pad_id=0)
        for index, fed in enumerate(rows):
            length = len(fed.ids) - 1
            assert batch.input_ids[index, :length].tolist() == fed.ids[:-1].tolist()
            assert batch.labels[index, :length].tolist() == fed.ids[1:].tolist()
            for name in names:
                labels = getattr(batch, name)[index, :length]
                assert labels.tolist() == getattr(fed, name)[1:].tolist()
            assert not batch.weights[index, length:].any()
            assert not batch.is_main[index, length:].any()


def test_types_are_those_promised():
    batch = Batch.of_rows([row(4)], pad_id=0)
    assert batch.samples is None
    names = [field.name for field in dataclasses.fields(batch) if field.name != "samples"]
    kinds = {name: getattr(batch, name).dtype for name in names}
    integers = ("input_ids", "labels", "places", "next_places", "slots", "positions")
    assert all(kinds.pop(name) == torch.int64 for name in integers)
    assert kinds == {"weights": torch.float32, "is_main": torch.bool, "modality": torch.int8}
    assert torch.equal(batch.to("cpu").labels, batch.labels)


def test_packed_rows_hold_the_same_samples_side_by_side():
    rows = [row(4), row(3, 20), row(6, 40), row(2, 60)]
    alone, packed = Batch.of_rows(rows, pad_id=0), Batch.packed(rows, length=7, pad_id=0)
    assert packed.input_ids.tolist() == [[40, 41, 42, 43, 44, 60], [5, 6, 7, 20, 21, 0]]
    assert packed.labels.tolist() == [[41, 42, 43, 44, 45, 61], [6, 7, 8, 21, 22, 0]]
    assert packed.samples is not None
    assert packed.samples.offsets.tolist() == [[0, 1, 2, 3, 4, 0], [0, 1, 2, 0, 1, 0]]
    assert packed.samples.padding_share == 1 / 12
    assert packed.num_tokens == alone.num_tokens
    assert packed.num_main_tokens == alone.num_main_tokens
    for name in ("weights", "is_main", "modality", "places", "next_places", "slots"):
        one, other = getattr(alone, name), getattr(packed, name)
        assert torch.equal(one[alone.labels > 0].sort()[0], other[packed.labels > 0].sort()[0])
    moved = packed.to("cpu")
    assert moved.samples is not None
    assert torch.equal(moved.samples.put, packed.samples.put)
    assert packed.each(lambda tensor: tensor[:1]).samples is None


def test_a_sample_that_does_not_fit_a_row_is_refused_and_never_cut():
    with pytest.raises(ValueError, match="5 tokens does not fit a row of 4"):
        Batch.packed([row(3), row(6)], length=4, pad_id=0)


def test_digest_sees_ids_and_where_rows_end():
    joined, split = [row(4), row(2, 9)], [row(2), row(4, 7)]

    assert digest(joined) == digest([row(4), row(2, 9)])
    assert digest(joined) != digest(split)
    assert digest([row(4)]) != digest([row(4, 6)])


def test_what_is_misread_is_an_input_and_no_label():
    misread = dataclasses.replace(row(4), read=np.array([5, 9, 7, 9]))
    batch = Batch.of_rows([misread], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 9, 7]]
    assert batch.labels.tolist() == [[6, 7, 8]]
    assert digest([misread]) != digest([row(4)])


def test_no_rows_are_no_batch():
    with pytest.raises(ValueError, match="at least one row"):
        Batch.of_rows([], pad_id=0)
    with pytest.raises(ValueError, match="at least one row"):
        Batch.packed([], length=9, pad_id=0)
