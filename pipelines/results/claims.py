"""What the paper claims, asked of a study: each claim has a bar, what was measured, a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipelines.results.curve import share_of_compute
from pipelines.results.summary import Cell, Results, Where
from pipelines.results.tables import RANDOM, SCALE, number
from pipelines.study import MAIN

__all__ = ["FEW_SHOT", "Claim", "claims"]

OURS, VANILLA, CAUSAL = "ra", "vanilla", "causal"
K = 2
NEW = "new categories"
_LEAST_REDUCTION = 0.3
"""Of KID and CMMD on familiar documents; the paper's FID fell by 47 % (29.5 to 15.7 [S])."""
_MOST_COMPUTE = 0.3
FEW_SHOT = {
    "few_shot_accuracy": "asked directly, as in the paper: the likelier label under the image",
    "few_shot_channel_accuracy": "asked by channel: the class under whose demonstration and label "
    "the image is likelier",
}
"""Metrics of few-shot classification, and how it was asked."""
_FEW_SHOT_KS = {1: "; the paper has 0.78 [S]", 2: "", 4: "", 8: "; the paper has 0.90 [S]"}
_CHANCE = 0.5
"""Of two classes."""
_SETS = (("familiar", "", "restricted"), ("unseen", "", "extended"))


_ABOUT = {
    "familiar": "Familiar documents: held out at random, their relatives trained on",
    "unseen": "Unseen documents: concepts held out whole, the memory holds another hand's drawing",
}
"""What claims about a set of documents are about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One line of a table of claims."""

    about: str
    """Claims about the same stand in one table, under this heading."""
    title: str
    where: str
    bar: str
    measured: str
    holds: bool


def claims(
    results: Results, *, budgets: Sequence[str], few_shot: Mapping[str, str] | None = None
) -> list[Claim]:
    """All claims that the study has numbers for.

    Args:
        results: of the study.
        budgets: its variants that are points of the compute curve.
        few_shot: titles of its variants that classify in another way than main, by name.
    """
    found: list[Claim] = []
    for name, group, memory in _SETS:
        for metric, title in (("kid", "KID"), ("cmmd", "CMMD")):
            for other, who in ((VANILLA, "vanilla CM3"), (CAUSAL, "the causal model")):
                found += _distance(results, metric, title, other, who, name, group, memory)
        found += _captions(results, name, group, memory)
        found += _perplexities(results, name, group, memory)
        found += _wrong(results, name, group)
    found += _compute(results, budgets)
    for variant, title in {MAIN: "", **(few_shot or {})}.items():
        found += _few_shot(results, variant, title)
    return found


def _distance(
    results: Results,
    metric: str,
    title: str,
    other: str,
    who: str,
    name: str,
    group: str,
    memory: str,
) -> Iterator[Claim]:
    where = Where(metric=metric, model=OURS, set=name, group=group, k=K, memory=memory)
    ours = results.cell(where)
    base = results.cell(where, model=other, k=0, memory="")
    if ours is None or base is None:
        return
    alone, seeds = ours.below(base)
    scale = SCALE.get(metric, 1.0)
    less = 1 - ours.mean / base.mean if base.mean > 0 else 0.0
    asked = _LEAST_REDUCTION if name == "familiar" and other == VANILLA else 0.0
    bar = "lower, intervals disjoint" + (f", by {asked:.0%} at least" if asked else "")
    pairs = results.cell(where, metric=f"{metric}_difference") if other == VANILLA else None
    yield Claim(
        about=_ABOUT[name],
        title=f"{title}{', times 1000,' if scale > 1 else ''} below {who}",
        where=name,
        bar=bar,
        measured=f"{number(ours, scale)} against {number(base, scale)}: "
        f"{abs(less):.0%} {'less' if less >= 0 else 'more'}; "
        f"disjoint on {alone} of {seeds} splits alone"
        + (f"; prompt by prompt {number(pairs, scale)}" if pairs else ""),
        holds=ours.surely_below(base) and less >= asked,
    )


def _captions(results: Results, name: str, group: str, memory: str) -> Iterator[Claim]:
    for metric, who, about in (
        ("cider_gain", "vanilla CM3", " (the paper: +17.2 [S])"),
        ("cider_gain_over_copy", "the copied caption", ""),
    ):
        gain = results.cell(
            Where(
                metric=metric, model=OURS, task="caption", set=name, group=group, k=K, memory=memory
            )
        )
        if gain is None:
            continue
        yield Claim(
            about=_ABOUT[name],
            title=f"CIDEr above {who}",
            where=name,
            bar=f"gain above 0{about}",
            measured=f"{number(gain)}; {_alone(gain, 0.0, above=True)}",
            holds=gain.surely(0.0, above=True),
        )


def _perplexities(results: Results, name: str, group: str, memory: str) -> Iterator[Claim]:
    for task in ("image", "caption"):
        ratio = results.cell(
            Where(
                metric="perplexity_ratio",
                model=OURS,
                task=task,
                set=name,
                group=group,
                k=K,
                memory=memory,
            )
        )
        if ratio is None:
            continue
        yield Claim(
            about=_ABOUT[name],
            title=f"{task.capitalize()} perplexity below vanilla CM3",
            where=name,
            bar="ratio below 1",
            measured=f"{number(ratio)}; {_alone(ratio, 1.0, above=False)}",
            holds=ratio.surely(1.0, above=False),
        )


def _wrong(results: Results, name: str, group: str) -> Iterator[Claim]:
    for metric, task, title in (
        ("image_perplexity", "image", "image perplexity"),
        ("kid", "image", "KID, times 1000"),
        ("caption_perplexity", "caption", "caption perplexity"),
        ("cider", "caption", "CIDEr"),
    ):
        where = Where(metric=metric, model=OURS, task=task, set=name, group=group, k=K)
        wrong = results.cell(where, memory=RANDOM)
        base = results.cell(where, model=VANILLA, k=0, memory="")
        if wrong is None or base is None:
            continue
        sign = -1 if metric == "cider" else 1
        pairs = zip(wrong.ones, base.ones, strict=True)
        lost = sum(sign * a.value >= sign * b.value for a, b in pairs)
        scale = SCALE.get(metric, 1.0)
        yield Claim(
            about=_ABOUT[name],
            title=f"Random contexts lose the gain ({title})",
            where=name,
            bar="no better than vanilla CM3",
            measured=f"{number(wrong, scale)} against {number(base, scale)}",
            holds=lost == len(wrong.ones),
        )


def _compute(results: Results, budgets: Sequence[str]) -> Iterator[Claim]:
    for metric, title in (("kid", "KID"), ("cmmd", "CMMD"), ("image_perplexity", "perplexity")):
        share = share_of_compute(results, metric, ours=OURS, other=CAUSAL, budgets=budgets)
        if share is None:
            continue
        said = "not reached" if share.value is None else f"{share.value:.0%} of the FLOPs"
        yield Claim(
            about="Training compute",
            title=f"The causal model's final image {title}, with less compute",
            where="familiar",
            bar=f"below {_MOST_COMPUTE:.0%} of its training FLOPs",
            measured=f"{said}{share.note}",
            holds=share.value is not None and share.value < _MOST_COMPUTE,
        )


def _few_shot(results: Results, variant: str, title: str) -> Iterator[Claim]:
    slices = [pair for pair in results.slices(variant) if pair[1] in ("", NEW)]
    for metric, how in FEW_SHOT.items():
        ways = ", ".join(filter(None, (how.partition(",")[0].partition(":")[0], title)))
        for name, group in slices:
            for k, paper in _FEW_SHOT_KS.items():
                where = Where(
                    metric=metric,
                    model=OURS,
                    variant=variant,
                    task="classify",
                    set=name,
                    group=group,
                    k=k,
                )
                ours, base = results.cell(where), results.cell(where, model=VANILLA)
                if ours is None or base is None:
                    continue
                gain = results.cell(where, metric=metric.replace("accuracy", "gain"))
                if gain is None:
                    continue
                chance = ours.surely(_CHANCE, above=True)
                yield Claim(
                    about=f"Few-shot classification {ways}",
                    title=f"Accuracy, k = {k}",
                    where=f"{name}, {group}" if group else name,
                    bar=f"above vanilla CM3 and chance{paper}",
                    measured=f"{number(ours)} against {number(base)}; gain {number(gain)}, "
                    f"{_alone(gain, 0.0, above=True)}; {'above' if chance else 'not above'} chance",
                    holds=gain.surely(0.0, above=True) and chance,
                )


def _alone(cell: Cell, value: float, *, above: bool) -> str:
    """What splits say by themselves: how many, and how many of them the opposite."""
    count, seeds = cell.excludes(value, above=above)
    against, _ = cell.excludes(value, above=not above)
    side, other = ("above", "below") if above else ("below", "above")
    opposite = f", {other} it on {against}" if against else ""
    return f"{side} {value:g} on {count} of {seeds} splits alone{opposite}"
