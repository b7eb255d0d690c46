from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from racm3.sequence.packing import pack, samples_of

ROOM = 50
LENGTHS = st.lists(st.integers(1, ROOM), min_size=1, max_size=25)


@given(LENGTHS)
def test_every_sample_stands_in_one_row_and_no_row_is_too_long(lengths):
    rows = pack(lengths, ROOM)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) <= ROOM
    assert all(rows)
    assert rows == pack(lengths, ROOM)


@given(LENGTHS)
def test_rows_are_few(lengths):
    """All but one are more than half full: what first fit promises for any lengths."""
    assert len(pack(lengths, ROOM)) < 2 * sum(lengths) / ROOM + 1
    assert len(pack(lengths, sum(lengths) + ROOM)) == 1
    assert len(pack([ROOM] * len(lengths), ROOM)) == len(lengths)


def test_rows_are_filled_evenly_where_that_makes_them_shorter():
    rows = pack([246, 164, 164, 82], 512)
    assert [sorted(row) for row in rows] == [[0, 3], [1, 2]]


def test_a_sample_that_is_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="51 tokens does not fit a row of 50"):
        pack([3, 51], ROOM)


@given(LENGTHS)
def test_places_and_positions_name_each_other(lengths):
    rows = [[lengths[i] for i in row] for row in pack(lengths, ROOM)]
    width = max(map(sum, rows))
    samples = samples_of(rows, width)
    count, tokens = len(rows) * width, sum(lengths)
    places = np.setdiff1d(np.arange(len(samples.taken)), samples.empty)
    positions = np.setdiff1d(np.arange(count), samples.padding)
    assert len(places) == len(positions) == tokens
    assert torch.equal(samples.put[samples.taken[places]], torch.from_numpy(places))
    assert torch.equal(samples.taken[samples.put[positions]], torch.from_numpy(positions))
    assert samples.padding_share == pytest.approx(1 - tokens / count)
    assert samples.squares == sum(length**2 for length in lengths)
    assert samples.longest == max(lengths)
    assert sum(S * L for S, L in samples.shapes) == len(samples.taken)


def test_offsets_start_anew_in_each_sample():
    samples = samples_of([[3, 2], [4]], 6)
    assert samples.offsets.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]
    assert samples.padding.tolist() == [5, 10, 11]


def test_samples_of_about_one_length_are_read_together():
    samples = samples_of([[40, 10], [38, 9], [39]], 50)
    assert samples.shapes == ((3, 40), (2, 10))
    grid = samples.taken[:120].view(3, 40)
    assert grid[0].tolist() == list(range(40))
    assert grid[1].tolist() == [*range(100, 139), 100]
    assert samples.empty.tolist() == [79, 118, 119, 139]
