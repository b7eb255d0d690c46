"""The page of results: claims first, then every table, the curve, and what it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from pipelines.report.model import Curve, Panel
from pipelines.report.plots import Chart, Tick, draw
from pipelines.report.sheets import TASKS
from pipelines.results.claims import FEW_SHOT, Claim, claims
from pipelines.results.curve import Point, compute_curve
from pipelines.results.rows import Row
from pipelines.results.summary import Results
from pipelines.results.tables import (
    ablation_table,
    compute_table,
    few_shot_table,
    k_table,
    main_table,
    markdown_table,
    memory_table,
    recall_table,
)
from pipelines.study import MAIN, Variant

__all__ = ["Page", "render", "sheets_in"]

_CURVES = (("ra", 2), ("vanilla", 0), ("causal", 0))
_TITLES = {"ra": "RA-CM3, K = 2", "vanilla": "vanilla CM3", "causal": "causal"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plot:
    """One picture of scores against compute."""

    metric: str
    task: str
    title: str
    documents: str
    memory: str
    unit: str
    scale: float = 1.0


_FAMILIAR, _UNSEEN = ("familiar", "restricted"), ("unseen", "extended")
_PLOTTED = {
    f"{metric}-{documents}" if documents == "unseen" else metric: _Plot(
        metric=metric,
        task=task,
        title=f"{title}, {documents}",
        documents=documents,
        memory=memory,
        unit=unit,
        scale=scale,
    )
    for documents, memory in (_FAMILIAR, _UNSEEN)
    for metric, task, title, unit, scale in (
        ("kid", "image", "KID", "times 1000", 1000.0),
        ("image_perplexity", "image", "Image perplexity", "exp of nats a code", 1.0),
        ("caption_perplexity", "caption", "Caption perplexity", "exp of nats a token", 1.0),
        ("cider", "caption", "CIDEr", "", 1.0),
    )
}
"""By name of the file, without its ending."""
_SLICES = (
    ("familiar", "", "restricted", "Familiar documents"),
    ("unseen", "", "extended", "Unseen documents"),
    ("unseen", "flags", "extended", "Unseen flags"),
    ("unseen", "rest", "extended", "The rest of unseen"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The page and its pictures."""

    markdown: str
    pictures: Mapping[str, str]
    """SVG by file name; the page looks for them in the folder `results` beside it."""


def render(
    rows: Sequence[Row],
    *,
    study: str,
    variants: Mapping[str, Variant],
    base: str = MAIN,
    notes: str,
    sheets: Sequence[str] = (),
) -> Page:
    """Writes the page; every number on it is one of the rows, or a mean of them.

    Args:
        rows: of all splits and variants.
        study: its name.
        variants: as the study defines them; one without rows is left out.
        base: the variant that ablations stand beside.
        notes: Markdown by people: what limits the results and what was tried.
        sheets: names of the sheets beside it, see `sheets_in`.
    """
    results = Results(rows)
    known = {name: one for name, one in variants.items() if name in results.variants}
    budgets = [name for name, one in known.items() if one.part == "curve"]
    ablations = {name: one for name, one in known.items() if one.part == "ablation"}
    few_shot = {name: one.title for name, one in known.items() if one.part == "few-shot"}
    parts = {
        "claims": _claims(claims(results, budgets=budgets, few_shot=few_shot)),
        "slices": [
            (title, main_table(results, documents=set_, group=group, memory=memory))
            for set_, group, memory, title in _SLICES
        ],
        "protocols": [
            (
                one.title,
                main_table(
                    results, documents="familiar", group="", memory="restricted", variant=name
                ),
            )
            for name, one in known.items()
            if one.part == "protocol"
        ],
        "ablations": ablation_table(results, ablations, base=base),
        "contexts": k_table(results),
        "memories": memory_table(results),
        "recall": recall_table(results),
        "few_shot": _few_shot(results, few_shot),
        "compute": compute_table(results, known),
        "artifacts": markdown_table(
            ["variant", "split", "scores"],
            [[v, str(seed), f"`{a[:12]}`"] for (v, seed), a in sorted(results.artifacts.items())],
        ),
    }
    splits = {
        "protocols": results.seeds_of(n for n, one in known.items() if one.part == "protocol"),
        "curve": results.seeds_of((MAIN, *budgets)),
        "ablations": results.seeds_of(ablations),
    }
    pictures = _pictures(results, budgets)
    markdown = _template("results.md.j2").render(
        study=study,
        seeds=results.seeds_of((MAIN,)) or results.seeds,
        splits=splits,
        notes=notes.strip(),
        pictures=sorted(pictures),
        sheets=[(TASKS[name.rpartition("-")[2].removesuffix(".png")], name) for name in sheets],
        **parts,
    )
    return Page(markdown=markdown.rstrip() + "\n", pictures=pictures)


def _few_shot(
    results: Results, variants: Mapping[str, str]
) -> list[tuple[str, tuple[int, ...], str]]:
    """Heading, splits, table of every way that was measured: main's, then other variants'."""
    found = []
    for variant, title in {MAIN: "", **variants}.items():
        for metric, how in FEW_SHOT.items():
            table = few_shot_table(results, metric, variant=variant)
            if table:
                ways = ", ".join(filter(None, (title, how)))
                seeds = results.seeds_of((variant,))
                found.append((ways[0].upper() + ways[1:], seeds, table))
    return found


def _claims(found: Sequence[Claim]) -> list[tuple[str, str, str]]:
    """What they are about, how many hold, table."""
    parts = []
    for about in dict.fromkeys(claim.about for claim in found):
        own = [claim for claim in found if claim.about == about]
        lines = [[c.title, c.where, c.bar, c.measured, "yes" if c.holds else "**no**"] for c in own]
        table = markdown_table(["claim", "documents", "bar", "measured", "holds"], lines)
        parts.append((about, f"{sum(c.holds for c in own)} of {len(own)}", table))
    return parts


def sheets_in(folder: Path) -> list[str]:
    """Names of the sheets in the folder beside a page, in the order of the tasks."""
    found = [path.name for path in folder.glob("sheet-*-*.png")]
    order = list(TASKS)
    return sorted(found, key=lambda n: order.index(n.rpartition("-")[2].removesuffix(".png")))


def _pictures(results: Results, budgets: Sequence[str]) -> dict[str, str]:
    found = {}
    for name, plot in _PLOTTED.items():
        curves = []
        for model, k in _CURVES:
            points = compute_curve(
                *(results, plot.metric, model),
                budgets=budgets,
                documents=plot.documents,
                k=k,
                memory=plot.memory if k else "",
                task=plot.task,
            )
            if points:
                curves.append(_curve(_TITLES[model], points, plot.scale))
        panel = Panel(
            title=plot.title,
            x_label="training GFLOP, contexts counted",
            y_label=plot.unit,
            curves=tuple(curves),
        )
        chart = draw(panel)
        if chart is not None:
            ticks = _budgets(chart, curves)
            made = _template("chart.svg.j2").render(chart=replace(chart, x_ticks=ticks))
            found[f"{name}.svg"] = made
    return found


def _budgets(chart: Chart, curves: Sequence[Curve]) -> tuple[Tick, ...]:
    """A tick at each budget of the curve that has most; budgets are told, not their logarithms."""
    line, curve = max(zip(chart.lines, curves, strict=True), key=lambda pair: len(pair[1].x))
    places = (float(point.partition(",")[0]) for point in line.points.split())
    return tuple(Tick(at=at, text=f"{2.0**x:,.0f}") for at, x in zip(places, curve.x, strict=True))


def _curve(name: str, points: Sequence[Point], scale: float) -> Curve:
    return Curve(
        name=name,
        x=tuple(math.log2(point.flops / 1e9) for point in points),
        y=tuple(scale * point.score.mean for point in points),
    )


def _template(name: str) -> Template:
    text = files("pipelines.results").joinpath(f"templates/{name}").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    return environment.from_string(text)
