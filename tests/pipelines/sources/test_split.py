from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.sources.split import Split, place_of, rows_within

LINKS = st.lists(st.binary(max_size=12), max_size=40)
SHARES = st.floats(0, 0.49)


@given(LINKS, SHARES, SHARES)
def test_every_row_is_in_one_part(links: list[bytes], validation: float, evaluation: float) -> None:
    parts = Split(validation=validation, evaluation=evaluation).parts
    found = [rows_within(links, low, high) for _, low, high in parts]
    assert sorted(row for rows in found for row in rows) == list(range(len(links)))


@given(LINKS, LINKS)
def test_what_is_held_out_stays_so_when_links_are_added(
    one: list[bytes], more: list[bytes]
) -> None:
    for _, low, high in Split(validation=0.3, evaluation=0.3).parts:
        before = {one[row] for row in rows_within(one, low, high)}
        after = {(one + more)[row] for row in rows_within(one + more, low, high)}
        assert before <= after
        assert not (set(one) - before) & after


def test_parts_have_about_their_shares() -> None:
    links = [f"http://h.invalid/{n}.jpg".encode() for n in range(4000)]
    sizes = {
        role: len(rows_within(links, low, high))
        for role, low, high in Split(validation=0.1, evaluation=0.2).parts
    }
    assert sum(sizes.values()) == 4000
    assert sizes["validation"] == pytest.approx(400, abs=80)
    assert sizes["evaluation"] == pytest.approx(800, abs=100)


def test_a_place_is_a_fraction() -> None:
    assert all(0 <= place_of(str(n).encode()) < 1 for n in range(1000))
    assert place_of(b"") == pytest.approx(0xE3B0C44298FC1 / 2**52)


def test_a_share_of_nothing_is_no_part() -> None:
    assert Split().parts == (("train", 0.0, 1.0),)
    assert [role for role, *_ in Split(evaluation=0.5).parts] == ["evaluation", "train"]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.0), (0.0, 1.0)])
def test_something_must_be_left(shares: tuple[float, float]) -> None:
    with pytest.raises(ValidationError):
        Split(validation=shares[0], evaluation=shares[1])
