"""The score rows arranged for a reader: the comparison in pairs, then one table a slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.report.model import Report, ScoreRow

__all__ = [
    "Cell",
    "Headline",
    "Line",
    "ScoreTable",
    "headlines",
    "model_title",
    "score_tables",
    "slice_title",
]

_TITLES = {
    "vanilla": "vanilla CM3",
    "causal": "causal",
    "ra": "RA-CM3",
    "racm3": "RA-CM3",
    "ra_cm3": "RA-CM3",
    "ra-cm3": "RA-CM3",
}
_METRICS: dict[tuple[str, str], tuple[str, bool]] = {
    ("image_perplexity", "image"): ("Image perplexity", False),
    ("bits_per_pixel", "image"): ("Bits per pixel", False),
    ("token_accuracy", "image"): ("Drawn image tokens that are right", True),
    ("psnr", "image"): ("PSNR against the original", True),
    ("clip_score", "image"): ("CLIP score", True),
    ("fid", "image"): ("FID", False),
    ("kid", "image"): ("KID", False),
    ("cmmd", "image"): ("CMMD", False),
    ("caption_perplexity", "caption"): ("Caption perplexity", False),
    ("bits_per_byte", "caption"): ("Bits per byte", False),
    ("cider", "caption"): ("CIDEr", True),
    ("few_shot_accuracy", "classify"): ("Right of two classes; chance is 0.5", True),
    ("few_shot_gain", "classify"): ("Above the baseline by", True),
    ("few_shot_channel_accuracy", "classify"): ("Right of two classes, asked by channel", True),
    ("few_shot_channel_gain", "classify"): ("Above the baseline by, asked by channel", True),
}
"""Title and whether higher is better; the order is that of the rows."""
_PAIRED = (
    *("perplexity_ratio", "nll_difference", "token_accuracy_ratio"),
    *("kid_difference", "kid_ratio", "cmmd_difference", "cmmd_ratio"),
    *("cider_gain", "cider_gain_over_copy"),
)
WRONG = "wrong"
CLASSIFY = "classify"
"""Task in the rows of few-shot classification."""
SHOWN = {
    "demonstrations": "of each class shown",
    "demonstrations by others": "of each class shown, by others",
}
"""What is said of the memory in these rows."""
FAMILIAR = "familiar"
"""The set whose whole is the question; other sets are asked part by part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One number as it is printed."""

    text: str
    interval: str = ""
    n: int = 0
    """Printed where it is not that of the line."""
    best: bool = False
    """Of the generators in its line."""
    verdict: str = ""
    """better or worse than no difference, where the interval excludes it; empty: it does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One metric across the columns."""

    title: str
    better: str
    """An arrow."""
    unit: str
    n: int
    cells: tuple[Cell | None, ...]
    note: int
    """Number of the protocol below the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTable:
    """All metrics on one slice."""

    title: str
    columns: tuple[tuple[str, str], ...]
    """(model, condition)."""
    lines: tuple[Line, ...]
    protocols: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """RA-CM3 against the baseline on one slice with one memory."""

    title: str
    memory: str
    first: bool
    """Whether it has a tile of its own, above the table."""
    n: int
    image: Cell | None
    """Change of image perplexity in percent."""
    difference: Cell | None
    """Paired difference of the NLL of a picture, nats."""
    accuracy: Cell | None
    """Ratio of token accuracies."""
    caption: Cell | None
    """Change of caption perplexity in percent."""
    protocol: str


def model_title(name: str) -> str:
    """How a generator is called on the page."""
    return _TITLES.get(name.lower(), name)


def slice_title(name: str, group: str) -> str:
    """`unseen: flags`, `unseen: the rest`, `familiar`."""
    if not group:
        return name or "all"
    return f"{name}: {'the rest' if group == 'rest' else group}"


def number(value: float) -> str:
    """Three or four digits that matter, four decimals at most, with a real minus sign."""
    size = abs(value)
    limits = (1000, 100, 10, 0.1)
    places = next((n for n, limit in enumerate(limits) if size >= limit), 4)
    text = f"{value:.2e}" if size >= 1e6 else f"{value:,.{places}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


# --- the comparison in pairs ----------------------------------------------------------------


def headlines(report: Report) -> tuple[Headline, ...]:
    """One row for each slice and memory in which the focus was compared with the baseline."""
    rows = {
        (r.set, r.group, r.memory, r.metric, r.task): r
        for r in report.scores
        if r.model == report.focus and r.metric in _PAIRED
    }
    places = dict.fromkeys((r.set, r.group, r.memory) for r in report.scores)
    parted = {name for name, group, _ in places if group}
    found = []
    for name, group, memory in sorted(places, key=_slice_order):
        cells = {k[3:]: r for k, r in rows.items() if k[:3] == (name, group, memory)}
        if not cells:
            continue
        image = cells.get(("perplexity_ratio", "image"))
        shown = image or next(iter(cells.values()))
        found.append(
            Headline(
                title=slice_title(name, group),
                memory=memory,
                first=(group == "") == (name == FAMILIAR or name not in parted),
                n=shown.n,
                image=_percent(image),
                difference=_signed(cells.get(("nll_difference", "image"))),
                accuracy=_times(cells.get(("token_accuracy_ratio", "image"))),
                caption=_percent(cells.get(("perplexity_ratio", "caption"))),
                protocol=shown.protocol,
            )
        )
    return tuple(found)


def _percent(row: ScoreRow | None) -> Cell | None:
    if row is None:
        return None

    def change(ratio: float) -> str:
        return f"{100 * (ratio - 1):+.1f}".replace("-", "\N{MINUS SIGN}")

    interval = "" if row.low is None or row.high is None else (
        f"{change(row.low)} to {change(row.high)} %"
    )  # fmt: skip
    return Cell(
        text=f"{change(row.value)} %",
        interval=interval,
        n=row.n,
        verdict=_verdict(row, 1, higher=False),
    )


def _times(row: ScoreRow | None) -> Cell | None:
    if row is None:
        return None
    ends = "" if row.low is None or row.high is None else f"{row.low:.2f} to {row.high:.2f}"
    return Cell(
        text=f"{row.value:.2f} ×", interval=ends, n=row.n, verdict=_verdict(row, 1, higher=True)
    )


def _signed(row: ScoreRow | None) -> Cell | None:
    if row is None:
        return None
    return Cell(
        text=number(row.value),
        interval=_interval(row.low, row.high),
        n=row.n,
        verdict=_verdict(row, 0, higher=False),
    )


def _verdict(row: ScoreRow, nothing: float, *, higher: bool) -> str:
    if row.low is None or row.high is None or row.low <= nothing <= row.high:
        return ""
    return "better" if (row.low > nothing) == higher else "worse"


def _slice_order(place: tuple[str, str, str]) -> tuple[bool, str, bool, bool, str, str]:
    """`familiar` first, as a whole and then in parts; other sets in parts, then as a whole."""
    name, group, memory = place
    familiar = name == FAMILIAR
    return not familiar, name, (group == "") != familiar, group == "rest", group, memory


# --- one table a slice ----------------------------------------------------------------------


def score_tables(report: Report) -> tuple[ScoreTable, ...]:
    """Every slice with all of its models and conditions, the copy rows and the floor among them.

    Few-shot classification has tables of its own, after the others.
    """
    rows = [r for r in report.scores if r.metric not in _PAIRED and (r.set or r.task)]
    told = [r for r in rows if r.task == CLASSIFY]
    return tuple(
        _table(report, [r for r in part if (r.set, r.group, "") == place], title(*place[:2]))
        for part, title in (
            ([r for r in rows if r.task != CLASSIFY], slice_title),
            (told, lambda *place: f"{slice_title(*place)}, classified by labels without meaning"),
        )
        for place in sorted({(r.set, r.group, "") for r in part}, key=_slice_order)
    )


def _table(report: Report, rows: Sequence[ScoreRow], title: str) -> ScoreTable:
    learned = {m.name for m in report.models}
    columns = sorted(
        {(r.model, r.k, r.memory) for r in rows}, key=lambda c: _column_order(report, c)
    )
    metrics = list(dict.fromkeys([*_METRICS, *sorted({(r.metric, r.task) for r in rows})]))
    protocols: dict[str, int] = {}
    lines = []
    for metric in metrics:
        by_column = {(r.model, r.k, r.memory): r for r in rows if (r.metric, r.task) == metric}
        if by_column:
            lines.append(_line(metric, by_column, columns, learned, protocols))
    return ScoreTable(
        title=title,
        columns=tuple(_column_title(c, learned) for c in columns),
        lines=tuple(lines),
        protocols=tuple(protocols),
    )


def _line(
    metric: tuple[str, str],
    by_column: dict[tuple[str, int, str], ScoreRow],
    columns: Sequence[tuple[str, int, str]],
    learned: set[str],
    protocols: dict[str, int],
) -> Line:
    title, higher = _METRICS.get(metric, (metric[0].replace("_", " ").capitalize(), None))
    n = max(r.n for r in by_column.values())
    first = next(by_column[column] for column in columns if column in by_column)
    contest = [r.value for r in by_column.values() if r.model in learned]
    best = None if higher is None or not contest else (max if higher else min)(contest)
    cells: list[Cell | None] = []
    for column in columns:
        row = by_column.get(column)
        cells.append(
            None
            if row is None
            else Cell(
                text=number(row.value),
                interval=_interval(row.low, row.high),
                n=row.n if row.n != n else 0,
                best=row.value == best and row.model in learned,
            )
        )
    return Line(
        title=title,
        better="" if higher is None else "higher is better" if higher else "lower is better",
        unit=first.unit,
        n=n,
        cells=tuple(cells),
        note=protocols.setdefault(first.protocol, len(protocols) + 1),
    )


def _column_order(report: Report, column: tuple[str, int, str]) -> tuple[int, bool, int, str, str]:
    """The focus as it is meant to be used, the baseline, the focus otherwise, all others.

    Of few-shot classification: the focus, the baseline, all others, each by k.
    """
    model, k, memory = column
    if memory in SHOWN:
        return {report.focus: 0, report.baseline: 1}.get(model, 2), False, k, model, memory
    most = max((m.max_k for m in report.models if m.name == report.focus), default=0)
    if model == report.focus:
        rank = 0 if k == most and memory != WRONG else 2
    else:
        names = [m.name for m in report.models]
        rank = 1 if model == report.baseline else 3 + (model not in names)
    return rank, memory == WRONG, -k, model, memory


def _column_title(column: tuple[str, int, str], learned: set[str]) -> tuple[str, str]:
    model, k, memory = column
    if model not in learned:
        return model, f"{memory} memory" if memory else "originals, encoded and decoded"
    if memory == WRONG:
        return model_title(model), f"{k} wrong contexts"
    if memory in SHOWN:
        return model_title(model), f"{k} {SHOWN[memory]}"
    if not memory:
        return model_title(model), "no context"
    return model_title(model), f"{k} context{'s' if k > 1 else ''}, {memory} memory"
