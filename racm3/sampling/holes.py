"""Holes in an image: from a box of pixels to the codes that it touches, and to spans of them.

A code stands for a rectangle of pixels, so a box of pixels covers every code that it touches. Its
codes lie on several rows of the grid, row-major: they are no single span. Two ways to fill them:

* `bridged`: one span from the first to the last of them, in which the codes beside the box are
  known and only read. Training masks one span of an image at a time (`objective.spans`), so this
  is what a generator has seen; it needs one sentinel whatever the box. Measured on held-out emoji:
  .3 to 2 nats a code less than `row_spans` (a small CM3 of 80 seconds, six boxes, 200 documents).
* `row_spans`: a span for each row, each with a sentinel of its own. All that is around the box is
  read before it is filled; a generator has seen few samples of several spans, and there are only so
  many sentinels (CM3: 16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

Span = tuple[int, int]
"""Half-open, of grid indices."""

BoxRule = Literal["lower_half", "right_half", "centre", "seeded"]
"""Which box: a half, the middle of half the sides, or one of half the sides at a drawn place."""


@dataclass(frozen=True, slots=True)
class Box:
    """Pixels of an image: left and top included, right and bottom not.

    Raises:
        ValueError: It is empty, or begins left of or above the image.
    """

    left: int
    top: int
    right: int
    bottom: int

    def __post_init__(self) -> None:
        if not (0 <= self.left < self.right and 0 <= self.top < self.bottom):
            raise ValueError(
                f"The box {self.left},{self.top},{self.right},{self.bottom} is empty or begins "
                "outside the image: give left,top,right,bottom with left < right, top < bottom."
            )

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.right, self.bottom

    def codes(self, *, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, ...]:
        """Grid indices of the codes that the box touches, row-major, ascending.

        Args:
            size: Height and width of the image in pixels.
            grid: h and w in codes.

        Raises:
            ValueError: The box does not lie within the image.
        """
        (height, width), (rows, columns) = size, grid
        if self.right > width or self.bottom > height:
            raise ValueError(
                f"The box {self.left},{self.top},{self.right},{self.bottom} reaches beyond the "
                f"image of {width} x {height} pixels."
            )
        down = _touched(self.top, self.bottom, height, rows)
        across = _touched(self.left, self.right, width, columns)
        return tuple(row * columns + column for row in down for column in across)


def _touched(low: int, high: int, pixels: int, codes: int) -> range:
    """Codes that the pixels [low, high) touch, along one side."""
    return range(low * codes // pixels, -(-high * codes // pixels))


def box_by_rule(rule: BoxRule, *, size: tuple[int, int], generator: np.random.Generator) -> Box:
    """The box of a rule in an image of `size` (height, width), pixels, each at least 2."""
    height, width = size
    tall, wide = height // 2, width // 2
    if rule == "lower_half":
        return Box(0, tall, width, height)
    if rule == "right_half":
        return Box(wide, 0, width, height)
    left, top = wide // 2, tall // 2
    if rule == "seeded":
        left, top = (
            int(generator.integers(width - wide + 1)),
            int(generator.integers(height - tall + 1)),
        )
    return Box(left, top, left + wide, top + tall)


def bridged(hole: Sequence[int]) -> list[Span]:
    """The one span from the first code of a hole to its last.

    Raises:
        ValueError: The hole is empty, or not ascending.
    """
    _check(hole)
    return [(hole[0], hole[-1] + 1)]


def row_spans(hole: Sequence[int], *, sentinels: int) -> list[Span]:
    """The runs of neighbouring codes of a hole; of a box: its rows, joined where it is full width.

    Raises:
        ValueError: The hole is empty or not ascending, or has more runs than there are sentinels.
    """
    _check(hole)
    breaks = [i for i in range(1, len(hole)) if hole[i] != hole[i - 1] + 1]
    starts, stops = [0, *breaks], [*breaks, len(hole)]
    if len(starts) > sentinels:
        raise ValueError(
            f"The hole covers {len(starts)} rows of codes and the vocabulary has {sentinels} "
            "sentinels, one a row: fill a lower box, or the whole as one span."
        )
    return [(hole[a], hole[b - 1] + 1) for a, b in zip(starts, stops, strict=True)]


def _check(hole: Sequence[int]) -> None:
    if not hole or any(a >= b for a, b in pairwise(hole)) or hole[0] < 0:
        raise ValueError("A hole needs grid indices in ascending order, one at least.")
