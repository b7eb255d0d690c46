"""The tables of the page of results, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.results.retriever_cost import RETRIEVER
from pipelines.results.summary import Cell, Results, Where, only
from pipelines.study import MAIN, Variant

__all__ = [
    "RANDOM",
    "SCALE",
    "ablation_table",
    "compute_table",
    "digits",
    "few_shot_table",
    "k_table",
    "main_table",
    "markdown_table",
    "memory_table",
    "number",
    "recall_table",
]

_METRICS: tuple[tuple[str, str, str], ...] = (
    ("kid", "image", "KID ↓, times 1000"),
    ("cmmd", "image", "CMMD ↓"),
    ("fid", "image", "FID ↓"),
    ("clip_score", "image", "CLIP score ↑"),
    ("token_accuracy", "image", "right image tokens ↑"),
    ("psnr", "image", "PSNR ↑, dB"),
    ("image_perplexity", "image", "image perplexity ↓"),
    ("bits_per_pixel", "image", "bits per pixel ↓"),
    ("copy_rate_codes", "image", "copies a context (codes)"),
    ("cider", "caption", "CIDEr ↑"),
    ("caption_perplexity", "caption", "caption perplexity ↓"),
    ("bits_per_byte", "caption", "bits per byte ↓"),
)
RANDOM = "random"
"""Name of the memory that answers at random."""
SCALE = {"kid": 1000.0}
"""What a metric is printed times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """Who is measured, and with what in front."""

    title: str
    model: str
    k: int | None
    memory: str | None


def columns_of(memory: str) -> tuple[Column, ...]:
    """Columns of the main table for documents that ask one memory."""
    return (
        Column(title="causal", model="causal", k=0, memory=""),
        Column(title="vanilla CM3", model="vanilla", k=0, memory=""),
        Column(title="RA-CM3, K = 2", model="ra", k=2, memory=memory),
        Column(title="RA-CM3, random contexts", model="ra", k=2, memory=RANDOM),
        Column(title="copy the top document", model="copy the top document", k=1, memory=memory),
        Column(title="image tokenizer (floor)", model="image tokenizer", k=0, memory=""),
    )


def main_table(
    results: Results, *, documents: str, group: str, memory: str, variant: str = MAIN
) -> str:
    """One slice of an evaluation set: metrics down, models across."""
    columns = columns_of(memory)
    lines = []
    for metric, task, title in _METRICS:
        cells = [
            results.cell(
                Where(
                    metric=metric,
                    model=c.model,
                    variant=variant,
                    task=task,
                    set=documents,
                    group=group,
                    k=c.k,
                    memory=c.memory,
                )
            )
            for c in columns
        ]
        if any(cells):
            scale = SCALE.get(metric, 1.0)
            lines.append([title, *(number(cell, scale) for cell in cells)])
    return markdown_table(["", *(c.title for c in columns)], lines)


def ablation_table(
    results: Results, variants: Mapping[str, Variant], *, base: str, model: str = "ra"
) -> str:
    """A line a variant, beside the base; all on the splits that every one of them has."""
    asked = (
        Where(metric="image_perplexity", model=model, set="familiar", k=2, memory="restricted"),
        Where(metric="kid", model=model, set="familiar", k=2, memory="restricted"),
        Where(metric="token_accuracy", model=model, set="familiar", k=2, memory="restricted"),
        Where(
            metric="caption_perplexity",
            model=model,
            task="caption",
            set="familiar",
            k=2,
            memory="restricted",
        ),
        Where(
            metric="cider", model=model, task="caption", set="familiar", k=2, memory="restricted"
        ),
        Where(
            metric="image_perplexity",
            model=model,
            set="unseen",
            group="flags",
            k=2,
            memory="extended",
        ),
        Where(
            metric="token_accuracy",
            model=model,
            set="unseen",
            group="flags",
            k=2,
            memory="extended",
        ),
    )
    titles = [
        *("image ppl", "KID, times 1000", "right tokens", "caption ppl", "CIDEr"),
        *("flags: image ppl", "flags: right tokens"),
    ]
    lines = []
    common = {
        seed
        for seed in results.seeds
        if all((name, seed) in results.artifacts for name in (base, *variants))
    }
    for name in dict.fromkeys((base, *variants)):
        cells = [
            only(results.cell(_read_at(where, variants.get(name)), variant=name), common)
            for where in asked
        ]
        if not any(cells):
            continue
        title = variants[name].title if name in variants else f"nothing ({base})"
        scales = (SCALE.get(where.metric, 1.0) for where in asked)
        shown = [number(cell, scale) for cell, scale in zip(cells, scales, strict=True)]
        lines.append([title, *shown])
    return markdown_table(["variant", *titles], lines)


def _read_at(where: Where, variant: Variant | None) -> Where:
    """The row of a variant that is measured with other contexts, or against another memory."""
    if variant is None:
        return where
    memory = variant.memory if where.memory == "restricted" else where.memory
    return replace(where, k=variant.k, memory=memory)


def k_table(results: Results, *, model: str = "ra") -> str:
    """Perplexities of one generator by the number of contexts that it reads."""
    lines = []
    for k in range(9):
        cells = []
        for set_, group, memory in (
            ("familiar", "", "restricted"),
            ("unseen", "flags", "extended"),
            ("unseen", "rest", "extended"),
        ):
            for task in ("image", "caption"):
                where = Where(
                    metric=f"{task}_perplexity",
                    model=model,
                    task=task,
                    set=set_,
                    group=group,
                    k=k,
                    memory=memory if k else "",
                )
                cells.append(results.cell(where))
        if any(cells):
            lines.append([str(k), *(number(cell) for cell in cells)])
    titles = [
        f"{where}: {task}"
        for where in ("familiar", "flags", "rest of unseen")
        for task in ("image", "caption")
    ]
    return markdown_table(["K", *titles], lines)


def few_shot_table(results: Results, metric: str, *, variant: str = MAIN) -> str:
    """Accuracy of each generator by the number of demonstrations; empty where there is none."""
    lines = []
    for name, group in results.slices(variant):
        for model in results.models(variant):
            where = Where(
                metric=metric,
                model=model,
                variant=variant,
                task="classify",
                set=name,
                group=group,
            )
            cells = [results.cell(where, k=k) for k in (1, 2, 4, 8)]
            if any(cells):
                lines.append([_slice(name, group), model, *(number(cell) for cell in cells)])
    titles = ["documents", "generator", "k = 1", "2", "4", "8"]
    return markdown_table(titles, lines) if lines else ""


def memory_table(results: Results) -> str:
    """RA-CM3 by the memory that it asks, and vanilla CM3, which asks none."""
    asked = [("ra", 2, name) for name in ("restricted", "extended", RANDOM)] + [("vanilla", 0, "")]
    lines = []
    for name, group in results.slices():
        for model, k, memory in asked:
            cells = [
                results.cell(
                    Where(metric=metric, model=model, task=task, set=name, group=group),
                    k=k,
                    memory=memory,
                )
                for metric, task in (
                    ("image_perplexity", "image"),
                    ("token_accuracy", "image"),
                    ("caption_perplexity", "caption"),
                    ("cider", "caption"),
                )
            ]
            if any(cells):
                shown = [number(cell) for cell in cells]
                lines.append([_slice(name, group), memory or "none (vanilla CM3)", *shown])
    titles = ["image perplexity", "right image tokens", "caption perplexity", "CIDEr"]
    return markdown_table(["documents", "memory", *titles], lines)


def recall_table(results: Results) -> str:
    """How often a document that shows the same thing is among the first that are retrieved."""
    lines = []
    for name, group in results.slices():
        for memory in ("restricted", "extended"):
            cells = [
                results.cell(
                    Where(
                        metric=f"recall_at_{k}",
                        model="retriever",
                        task=task,
                        set=name,
                        group=group,
                        memory=memory,
                    )
                )
                for task in ("image", "caption")
                for k in (1, 2)
            ]
            if any(cell and cell.mean > 0 for cell in cells):
                lines.append([_slice(name, group), memory, *(number(cell) for cell in cells)])
    titles = [f"by {query}: first {k}" for query in ("caption", "image") for k in (1, 2)]
    return markdown_table(["documents", "memory", *titles], lines)


def compute_table(results: Results, variants: Iterable[str]) -> str:
    """Training FLOPs, tokens and steps of every generator; what the retriever cost beside them."""
    lines = []
    retrieval = [
        results.cell(Where(metric=metric, model=RETRIEVER, task=""))
        for metric in ("encoder_flops", "embedding_flops", "search_flops")
    ]
    beside = " + ".join(f"{cell.mean:.2g}" if cell else "?" for cell in retrieval)
    for variant in (MAIN, *variants):
        for model in results.models(variant):
            where = Where(metric="training_flops", model=model, variant=variant, task="")
            flops = results.cell(where)
            tokens = results.cell(where, metric="training_tokens")
            if flops is None or tokens is None:
                continue
            steps = round(flops.n / len(flops.ones))
            cost = beside if results.reads_contexts(variant, model) else "-"
            read = f"{tokens.mean:.3g}"
            lines.append([variant, model, f"{flops.mean:.3g}", cost, read, f"{steps:,}"])
    titles = ["variant", "generator", "FLOPs", "encoder + embedding + search", "tokens read"]
    return markdown_table([*titles, "steps"], lines)


def number(cell: Cell | None, scale: float = 1.0) -> str:
    """The mean over splits and its 95 % interval, or the range over splits where there is none."""
    if cell is None:
        return "-"
    said = digits(scale * cell.mean)
    if cell.interval is not None:
        low, high = (digits(scale * end) for end in cell.interval)
        return f"{said} [{low}, {high}]"
    if len(cell.ones) > 1:
        low, high = (digits(scale * end) for end in cell.spread)
        return f"{said} ({low} to {high})"
    return said


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; a sentence where it would be empty."""
    if not lines:
        return "Not measured."
    rule = ["---", *("---:" for _ in titles[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, rule, *lines))


def _slice(name: str, group: str) -> str:
    return f"{name}, {group}" if group else name


def digits(value: float) -> str:
    """Three digits that matter."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
