from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.scoring.board import REST, SMALLEST_GROUP, Board, Place, Slice, slices_of
from racm3.metrics.score import Score

SETS, GROUPS = ["familiar", "unseen"], ["", "flags", "food", "faces"]
WHERE = Slice(set="familiar", group="", index=np.arange(2))


def place(number: int, name: str, group: str) -> Place:
    return Place(document_id=f"d{number}", set=name, group=group, cluster=f"c{number}")


def score(value: float, name: str = "psnr") -> Score:
    return Score(
        name=name, value=value, unit="dB", higher_is_better=True, n=2, protocol="as a test does"
    )


@given(st.lists(st.tuples(st.sampled_from(SETS), st.sampled_from(GROUPS)), max_size=60))
def test_large_groups_and_the_rest_part_each_set(drawn: list[tuple[str, str]]) -> None:
    places = [place(i, *one) for i, one in enumerate(drawn)]
    slices = slices_of(places)
    for name in {p.set for p in places}:
        (whole,) = [s.index.tolist() for s in slices if (s.set, s.group) == (name, "")]
        parts = {s.group: s.index.tolist() for s in slices if s.set == name and s.group}
        assert whole == [i for i, p in enumerate(places) if p.set == name]
        sizes = Counter(places[i].group for i in whole)
        large = {group for group in GROUPS[1:] if sizes[group] >= SMALLEST_GROUP}
        assert set(parts) - {REST} == large
        if large:
            assert sorted(i for part in parts.values() for i in part) == whole
        for group in large:
            assert {places[i].group for i in parts[group]} == {group}


def test_a_row_is_measured_once() -> None:
    board = Board()
    for value in (1.0, 2.0):
        board.add(score(value), model="ra", task="image", where=WHERE, k=2, memory="m")
    board.add(score(3.0), model="ra", task="image", where=WHERE, k=1, memory="m")
    assert board.table().column("value").to_pylist() == [1.0, 3.0]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_has_no_row(value: float) -> None:
    board = Board()
    board.add(score(value), model="ra", task="image", where=WHERE)
    assert board.table().num_rows == 0
