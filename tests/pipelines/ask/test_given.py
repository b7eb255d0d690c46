"""Boxes of a picture, brought to the image that the generator sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.ask.given import Given, read_box
from pipelines.decode.normalize import framed
from pipelines.errors import UsageError
from racm3.sampling.holes import Box


def seen(size: tuple[int, int], image_size: int | None, side: int) -> Given:
    return Given(
        name="mine.png",
        pixels=np.zeros((side, side, 3), np.uint8),
        codes=(),
        caption=None,
        document_id=None,
        sha256="",
        size=size,
        image_size=image_size,
    )


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, int], Box]:
    width, height = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return (width, height), Box(left, top, right, bottom)


@settings(max_examples=60, deadline=None)
@given(case=boxes(), side=st.sampled_from([16, 64]))
def test_a_box_stays_where_its_pixels_go(case: tuple[tuple[int, int], Box], side: int) -> None:
    """A black box on white, scaled and cut as a picture is: what turned black lies in the box."""
    size, box = case
    picture = Image.new("L", size, 255)
    picture.paste(0, box.edges)
    scaled, square = framed(size, side)
    small = np.asarray(picture.resize(scaled, Image.Resampling.NEAREST).crop(square))
    rows, columns = np.nonzero(small == 0)
    try:
        found = seen(size, side, side).on_canvas(box)
    except UsageError:  # it lies outside the square
        assert len(rows) == 0
        return
    assert found.right <= side
    assert found.bottom <= side
    if len(rows):
        assert found.left <= columns.min() <= columns.max() < found.right
        assert found.top <= rows.min() <= rows.max() < found.bottom


def test_a_whole_picture_is_the_whole_image() -> None:
    for size, image_size in (((200, 100), 64), ((100, 200), 64), ((33, 33), 64), ((50, 70), None)):
        found = seen(size, image_size, 64).on_canvas(Box(0, 0, *size))
        assert found == Box(0, 0, 64, 64)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,x", "4,0,4,9", "-1,0,4,9", "1.5,0,4,9"])
def test_what_is_no_box_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--box"):
        read_box(text)


def test_a_box_is_read_as_it_is_written() -> None:
    assert read_box("1, 2,30,40") == Box(1, 2, 30, 40)
