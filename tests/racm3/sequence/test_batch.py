from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from racm3.sequence.batch import Batch, Row, digest_of_rows


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
    kinds = {f.name: getattr(batch, f.name).dtype for f in dataclasses.fields(batch)}
    integers = ("input_ids", "labels", "places", "next_places", "slots", "positions")
    assert all(kinds.pop(name) == torch.int64 for name in integers)
    assert kinds == {"weights": torch.float32, "is_main": torch.bool, "modality": torch.int8}
    assert torch.equal(batch.to("cpu").labels, batch.labels)


def test_digest_sees_ids_and_where_rows_end():
    joined, split = [row(4), row(2, 9)], [row(2), row(4, 7)]
    assert digest_of_rows(joined) == digest_of_rows([row(4), row(2, 9)])
    assert digest_of_rows(joined) != digest_of_rows(split)
    assert digest_of_rows([row(4)]) != digest_of_rows([row(4, 6)])


def test_what_is_misread_is_an_input_and_no_label():
    misread = dataclasses.replace(row(4), read=np.array([5, 9, 7, 9]))
    batch = Batch.of_rows([misread], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 9, 7]]
    assert batch.labels.tolist() == [[6, 7, 8]]
    assert digest_of_rows([misread]) != digest_of_rows([row(4)])


def test_no_rows_are_no_batch():
    with pytest.raises(ValueError, match="at least one row"):
        Batch.of_rows([], pad_id=0)
