"""The stages of a run as a layered drawing: where each box stands and how each arrow runs.

Sugiyama's way, in small: layers by longest path, invisible points where an arrow crosses a layer,
order inside a layer by the mean place of the neighbours, swept down and up. An arrow that follows
from others (a -> c where a -> b -> c is drawn) is left out; the stage table lists every input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipelines.report.model import StageRow

__all__ = ["Arrow", "Box", "Diagram", "implied_edges", "lay_out", "layers_of"]

BOX_WIDTH, BOX_HEIGHT = 214, 76
_GAP_X, _GAP_Y, _MARGIN, _POINT_WIDTH, _SWEEPS = 22, 44, 12, 10, 24

Edge = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """One stage; x and y are its upper left corner, pixels."""

    stage: StageRow
    x: float
    y: float

    @property
    def name(self) -> str:
        """Of the stage."""
        return self.stage.label.partition("[")[0]

    @property
    def variant(self) -> str:
        """Which of the stage's calls it is; the kind it makes where there is only one."""
        return self.stage.label.partition("[")[2].removesuffix("]") or self.stage.kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrow:
    """One edge."""

    source: str
    target: str
    path: str
    """SVG path data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagram:
    """The drawing; sizes in pixels."""

    width: float
    height: float
    box_width: int
    box_height: int
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


def layers_of(nodes: Sequence[str], edges: Iterable[Edge]) -> dict[str, int]:
    """The layer of each node: one more than the deepest node it needs.

    Raises:
        ValueError: when the edges run in a circle.
    """
    needs: dict[str, set[str]] = {node: set() for node in nodes}
    for source, target in edges:
        needs[target].add(source)
    layers: dict[str, int] = {}
    while len(layers) < len(nodes):
        ready = [n for n in nodes if n not in layers and needs[n] <= layers.keys()]
        if not ready:
            raise ValueError(
                f"stages need each other in a circle: {sorted(needs.keys() - layers.keys())}"
            )
        for node in ready:
            layers[node] = 1 + max((layers[need] for need in needs[node]), default=-1)
    return layers


def implied_edges(nodes: Sequence[str], edges: Iterable[Edge]) -> set[Edge]:
    """Edges whose two ends are also joined by a longer way."""
    edges = set(edges)
    layers = layers_of(nodes, edges)
    above: dict[str, set[str]] = {}
    implied = set()
    for node in sorted(nodes, key=lambda n: layers[n]):
        needs = {source for source, target in edges if target == node}
        implied |= {(s, node) for s in needs if any(s in above[o] for o in needs if o != s)}
        above[node] = needs.union(*(above[need] for need in needs))
    return implied


def lay_out(stages: Sequence[StageRow]) -> Diagram:
    """Places the stages; what they read gives the arrows."""
    rows = {stage.label: stage for stage in stages}
    edges = {(need, s.label) for s in stages for need in s.reads if need in rows}
    drawn = sorted(edges - implied_edges(list(rows), edges))
    layers = layers_of(list(rows), edges)
    order, ways = _with_points(list(rows), drawn, layers)
    places = _places(_ordered(order, ways), ways, set(rows))
    width = 2 * _MARGIN + max((x + BOX_WIDTH / 2 for x, _ in places.values()), default=0)
    height = 2 * _MARGIN + len(order) * (BOX_HEIGHT + _GAP_Y) - _GAP_Y
    boxes = [
        Box(
            stage=row,
            x=_MARGIN + places[label][0] - BOX_WIDTH / 2,
            y=_MARGIN + places[label][1],
        )
        for label, row in rows.items()
    ]
    arrows = [
        Arrow(source=way[0], target=way[-1], path=_path([places[p] for p in way])) for way in ways
    ]
    return Diagram(
        width=width,
        height=max(height, 0),
        box_width=BOX_WIDTH,
        box_height=BOX_HEIGHT,
        boxes=tuple(boxes),
        arrows=tuple(arrows),
    )


def _with_points(
    nodes: Sequence[str], edges: Sequence[Edge], layers: dict[str, int]
) -> tuple[list[list[str]], list[list[str]]]:
    """Nodes and invisible points by layer, and each edge as its way through them."""
    order: list[list[str]] = [[] for _ in range(1 + max(layers.values(), default=-1))]
    for node in nodes:
        order[layers[node]].append(node)
    ways = []
    for source, target in edges:
        way = [source]
        for layer in range(layers[source] + 1, layers[target]):
            # arrows that leave the same box share their points, like a bus
            point = f"\0{source}\0{layer}"
            if point not in order[layer]:
                order[layer].append(point)
            way.append(point)
        ways.append([*way, target])
    return order, ways


def _ordered(order: list[list[str]], ways: list[list[str]]) -> list[list[str]]:
    """Fewer crossings: each layer sorted by the mean place of its neighbours, down and up."""
    up: dict[str, set[str]] = {}
    down: dict[str, set[str]] = {}
    for way in ways:
        for first, second in pairwise(way):
            down.setdefault(first, set()).add(second)
            up.setdefault(second, set()).add(first)
    order = [list(layer) for layer in order]
    best, fewest = order, _crossings(order, down)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        indices = range(1, len(order)) if forward else range(len(order) - 2, -1, -1)
        order = [list(layer) for layer in order]
        for i in indices:
            fixed = order[i - 1] if forward else order[i + 1]
            place = {name: n for n, name in enumerate(fixed)}
            order[i] = _by_neighbours(order[i], place, up if forward else down)
        count = _crossings(order, down)
        if count < fewest:
            best, fewest = order, count
    return best


def _by_neighbours(
    layer: list[str], place: dict[str, int], neighbours: dict[str, set[str]]
) -> list[str]:
    def mean(item: tuple[int, str]) -> float:
        found = [place[n] for n in neighbours.get(item[1], ()) if n in place]
        return sum(found) / len(found) if found else float(item[0])

    return [name for _, name in sorted(enumerate(layer), key=mean)]


def _crossings(order: list[list[str]], down: dict[str, set[str]]) -> int:
    count = 0
    for upper, lower in pairwise(order):
        place = {name: n for n, name in enumerate(lower)}
        ends = [sorted(place[t] for t in down.get(name, ()) if t in place) for name in upper]
        flat = [(i, t) for i, targets in enumerate(ends) for t in targets]
        count += sum(a[0] < b[0] and a[1] > b[1] for a in flat for b in flat)
    return count


def _places(
    order: list[list[str]], ways: list[list[str]], boxes: set[str]
) -> dict[str, tuple[float, float]]:
    """Middle of the upper edge of each node and point; layers are centred."""
    widths = [[BOX_WIDTH if n in boxes else _POINT_WIDTH for n in layer] for layer in order]
    totals = [sum(w) + _GAP_X * (len(w) - 1) for w in widths]
    widest = max(totals, default=0)
    places = {}
    for i, (layer, width, total) in enumerate(zip(order, widths, totals, strict=True)):
        x = (widest - total) / 2
        for name, w in zip(layer, width, strict=True):
            places[name] = (x + w / 2, float(i * (BOX_HEIGHT + _GAP_Y)))
            x += w + _GAP_X
    return places


def _path(places: Sequence[tuple[float, float]]) -> str:
    """A smooth line from the foot of the first box to the head of the last, around the others."""
    x, y = places[0][0] + _MARGIN, places[0][1] + _MARGIN + BOX_HEIGHT
    parts = [f"M{x:.1f} {y:.1f}"]
    for i, place in enumerate(places[1:], start=1):
        next_x, next_y = place[0] + _MARGIN, place[1] + _MARGIN
        last = i == len(places) - 1
        end = next_y - (6 if last else 0)
        bend = (end - y) / 2
        parts.append(
            f"C{x:.1f} {y + bend:.1f} {next_x:.1f} {end - bend:.1f} {next_x:.1f} {end:.1f}"
        )
        x, y = next_x, end
        if not last:
            y = next_y + BOX_HEIGHT
            parts.append(f"V{y:.1f}")
    return "".join(parts)
