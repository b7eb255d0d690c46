"""Boxes of pixels, the codes that they touch, and the spans of a hole."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.sampling.holes import Box, box_by_rule, bridged, row_spans


@st.composite
def boxes(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    grid = (draw(st.integers(1, height)), draw(st.integers(1, width)))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return Box(left, top, right, bottom), (height, width), grid


@given(boxes())
def test_a_box_covers_the_codes_of_its_pixels(case):
    """Equal to asking every pixel which code it belongs to, where codes are whole pixels."""
    box, (height, width), (rows, columns) = case
    codes = box.codes(size=(height, width), grid=(rows, columns))
    touched = {
        (row, column)
        for row in range(rows)
        for column in range(columns)
        if box.left * columns < (column + 1) * width
        and column * width < box.right * columns
        and box.top * rows < (row + 1) * height
        and row * height < box.bottom * rows
    }
    assert codes == tuple(sorted(row * columns + column for row, column in touched))


@given(boxes())
def test_spans_of_a_hole_hold_it(case):
    box, size, grid = case
    codes = box.codes(size=size, grid=grid)
    ((start, stop),) = bridged(codes)
    assert (start, stop - 1) == (codes[0], codes[-1])
    spans = row_spans(codes, sentinels=1000)
    assert [i for a, b in spans for i in range(a, b)] == list(codes)
    assert all(b < c for (_, b), (c, _) in pairwise(spans))


def test_more_rows_than_sentinels_are_refused():
    codes = Box(0, 0, 8, 64).codes(size=(64, 64), grid=(8, 8))
    assert len(row_spans(codes, sentinels=8)) == 8
    with pytest.raises(ValueError, match=r"covers 8 rows of codes and the vocabulary has 7"):
        row_spans(codes, sentinels=7)
    assert row_spans(range(64), sentinels=1) == [(0, 64)]


@pytest.mark.parametrize("edges", [(3, 0, 3, 4), (0, 4, 4, 2), (-1, 0, 3, 3)])
def test_a_box_without_pixels_is_refused(edges):
    with pytest.raises(ValueError, match="left < right"):
        Box(*edges)


def test_a_box_beyond_the_image_is_refused():
    with pytest.raises(ValueError, match="64 x 32 pixels"):
        Box(0, 0, 40, 40).codes(size=(32, 64), grid=(4, 8))


@given(st.integers(2, 50), st.integers(2, 50), st.integers(0, 99))
def test_boxes_by_rule_cover_half_or_a_quarter(height, width, seed):
    boxes = {
        rule: box_by_rule(rule, size=(height, width), generator=np.random.default_rng(seed))
        for rule in ("lower_half", "right_half", "centre", "seeded")
    }
    shapes = {rule: (b.bottom - b.top, b.right - b.left) for rule, b in boxes.items()}
    assert shapes["lower_half"] == (height - height // 2, width)
    assert shapes["right_half"] == (height, width - width // 2)
    assert shapes["centre"] == shapes["seeded"] == (height // 2, width // 2)
    for box in boxes.values():
        assert box.codes(size=(height, width), grid=(2, 2))
