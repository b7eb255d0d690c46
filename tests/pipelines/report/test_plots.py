from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.report.model import Curve, Panel
from pipelines.report.plots import draw, round_ticks, thin

NUMBERS = st.floats(-1e9, 1e9)


@given(NUMBERS, st.floats(1e-3, 1e9))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    ticks = round_ticks(low, low + span)
    assert 1 <= len(ticks) <= 7
    slack = 1e-6 * (abs(low) + span)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)


@example([(5e-324, 0.0)])
@example([(0.0, 5e-324)])
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=30))
def test_every_point_is_inside_the_axes(points: list[tuple[float, float]]) -> None:
    curve = Curve(name="c", x=tuple(x for x, _ in points), y=tuple(y for _, y in points))
    chart = draw(Panel(title="t", x_label="x", y_label="y", curves=(curve,)))
    assert chart is not None
    for pair in chart.lines[0].points.split():
        x, y = map(float, pair.split(","))
        assert chart.left - 0.1 <= x <= chart.right + 0.1
        assert chart.top - 0.1 <= y <= chart.bottom + 0.1


def test_thinning_keeps_ends_and_leaves_out_what_is_not_finite() -> None:
    count = 1001
    curve = Curve(name="c", x=tuple(map(float, range(count))), y=(math.nan, *[1.0] * (count - 1)))
    kept = thin(curve, most=100)
    assert kept[0] == (1.0, 1.0)
    assert kept[-1] == (1000.0, 1.0)
    assert len(kept) <= 102


def test_nothing_to_draw_is_no_chart() -> None:
    empty = Curve(name="c", x=(), y=())
    assert draw(Panel(title="t", x_label="", y_label="", curves=(empty,))) is None


def test_lines_end_with_their_last_value() -> None:
    curve = Curve(name="c", x=(0.0, 1.0, 2.0), y=(3.0, 1.0, 2.0))
    chart = draw(Panel(title="t", x_label="", y_label="", curves=(curve,)))
    assert chart is not None
    assert (chart.lines[0].last, chart.lines[0].lowest) == ("2", "1")
    assert float(chart.lines[0].points.split()[-1].split(",")[0]) == pytest.approx(chart.right)
