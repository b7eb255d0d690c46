from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report.dag import BOX_HEIGHT, BOX_WIDTH, implied_edges, lay_out, layers_of


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], set[tuple[str, str]]]:
    nodes = [f"n{i}" for i in range(draw(st.integers(1, 9)))]
    pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :]]
    edges = draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    return nodes, edges


def _reach(edges: set[tuple[str, str]], start: str) -> set[str]:
    below = {b for a, b in edges if a == start}
    return below.union(*(_reach(edges, node) for node in below))


@given(graphs())
def test_every_edge_points_down(graph: tuple[list[str], set[tuple[str, str]]]) -> None:
    nodes, edges = graph
    layers = layers_of(nodes, edges)
    assert all(layers[a] < layers[b] for a, b in edges)


@given(graphs())
def test_edges_left_out_follow_from_those_drawn(
    graph: tuple[list[str], set[tuple[str, str]]],
) -> None:
    nodes, edges = graph
    drawn = edges - implied_edges(nodes, edges)
    assert all(_reach(drawn, n) == _reach(edges, n) for n in nodes)
    assert not any(_reach(drawn - {e}, e[0]) == _reach(edges, e[0]) for e in drawn)


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        layers_of(["a", "b"], [("a", "b"), ("b", "a")])


@given(graphs())
def test_boxes_do_not_overlap_and_lie_inside(
    graph: tuple[list[str], set[tuple[str, str]]],
) -> None:
    from pipelines.report.model import StageRow

    nodes, edges = graph
    same = {"kind": "k", "artifact_id": "", "rows_in": 0, "rows_out": 0, "dropped": {}}
    more = {"counts": {}, "seconds": 0.0, "shards": 1, "executed": 1, "reused": False}
    rows = [
        StageRow(label=n, reads=tuple(a for a, b in edges if b == n), **same, **more)  # type: ignore[arg-type]
        for n in nodes
    ]
    diagram = lay_out(rows)
    places = [(box.x, box.y) for box in diagram.boxes]
    for i, (x, y) in enumerate(places):
        assert 0 <= x <= diagram.width - BOX_WIDTH
        assert 0 <= y <= diagram.height - BOX_HEIGHT
        for x2, y2 in places[i + 1 :]:
            assert abs(x - x2) >= BOX_WIDTH or abs(y - y2) >= BOX_HEIGHT


def test_names_are_split_into_stage_and_call(made: Any) -> None:
    boxes = lay_out([made.stage("train[ra]"), made.stage("ingest")]).boxes
    assert [(box.name, box.variant) for box in boxes] == [("train", "ra"), ("ingest", "ingest")]
    assert lay_out([]).boxes == ()
