"""Line charts as plain geometry: axes with round numbers, lines thinned to what a screen shows.

The template turns them into inline SVG, so that they follow the page's colours in light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.report.model import Curve, Panel

__all__ = ["Chart", "Line", "Tick", "draw", "round_ticks", "thin"]

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 12, 44
_MOST_POINTS = 240
COLOURS = 6
"""Line styles that the page knows."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    """Pixels from the left or the top."""
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve, drawn."""

    name: str
    points: str
    """SVG polyline points."""
    colour: int
    """Index of a line style, 0..COLOURS - 1."""
    faint: bool
    last: str
    """Its last value."""
    lowest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One panel, drawn; sizes in pixels."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` multiples of 1, 2 or 5 x 10^n within [low, high]; low < high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def thin(curve: Curve, most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """The finite points, every n-th of them and the last."""
    points = [p for p in zip(curve.x, curve.y, strict=True) if all(map(math.isfinite, p))]
    step = max(1, math.ceil(len(points) / most))
    kept = points[::step]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def draw(panel: Panel) -> Chart | None:
    """Scales all curves of a panel to common axes; None when there is nothing to draw."""
    curves = [(curve, points) for curve in panel.curves if (points := thin(curve))]
    if not curves:
        return None
    xs = [x for _, points in curves for x, _ in points]
    left, right = _padded(min(xs), max(xs), 0)
    low, high = _padded(*_inner_range([p for _, p in curves]), 0.06)

    def at_x(x: float) -> float:
        return LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        y = min(max(y, low), high)
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    lines = []
    for i, (curve, points) in enumerate(curves):
        text = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)
        values = [y for _, y in points]
        lines.append(
            Line(
                name=curve.name,
                points=text,
                colour=i % COLOURS,
                faint=curve.faint,
                last=f"{values[-1]:.4g}",
                lowest=f"{min(values):.4g}",
            )
        )
    return Chart(
        title=panel.title,
        x_label=panel.x_label,
        y_label=panel.y_label,
        x_ticks=tuple(Tick(at=at_x(t), text=_label(t)) for t in round_ticks(left, right)),
        y_ticks=tuple(Tick(at=at_y(t), text=_label(t)) for t in round_ticks(low, high)),
        lines=tuple(lines),
    )


def _inner_range(curves: Sequence[list[tuple[float, float]]]) -> tuple[float, float]:
    """From the lowest value to the highest that is not in the first twentieth of a long curve.

    The first steps of a training are so much worse than all others that they would flatten them.
    """
    inner = [y for points in curves for _, y in points[len(points) // 20 :]]
    return min(y for points in curves for _, y in points), max(inner)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if high - low <= 1e-12 * max(1.0, abs(high)):
        size = max(abs(low), abs(high))
        margin = 0.5 * (size if size > 1e-12 else 1.0)  # half of the least number is 0
        return low - margin, high + margin
    return low - share * (high - low), high + share * (high - low)


def _label(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, power = f"{value:.2e}".split("e")
        mantissa = digits.rstrip("0").rstrip(".")
        return f"{mantissa}·10{str(int(power)).translate(_SUPERSCRIPTS)}"
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")
