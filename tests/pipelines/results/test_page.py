from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import UsageError
from pipelines.results.claims import claims
from pipelines.results.curve import compute_curve, share_of_compute
from pipelines.results.page import render
from pipelines.results.rows import SCHEMA, Row, join, read_rows, write_rows
from pipelines.results.summary import Cell, Results, Where
from pipelines.study import Variant

VARIANTS = {
    "alpha-0": Variant(title="alpha 0", part="ablation", changes={}),
    "budget-half": Variant(title="half", part="curve", changes={}),
}


def row(**values: Any) -> Row:
    empty = dict.fromkeys(SCHEMA.names)
    base = {"variant": "main", "seed": 0, "artifact": "a" * 64, "recipe": "r" * 64}
    base |= {"metric": "kid", "model": "ra"}
    base |= {"task": "image", "set": "familiar", "group": "", "k": 2, "memory": "restricted"}
    base |= {"value": 1.0, "n": 300, "unit": "", "protocol": "as said"}
    return empty | base | values


def distances(ours: float, base: float, *, seeds: int = 3, width: float = 0.1) -> list[Row]:
    """KID of RA-CM3 and vanilla CM3 on several splits."""
    rows = []
    for seed in range(seeds):
        for model, value, k, memory in (
            ("ra", ours, 2, "restricted"),
            ("vanilla", base, 0, ""),
        ):
            ends = {"low": value - width, "high": value + width}
            rows.append(row(seed=seed, model=model, value=value, k=k, memory=memory, **ends))
    return rows


def curve(model: str, k: int, memory: str, points: dict[str, tuple[float, float]]) -> list[Row]:
    rows = []
    for variant, (flops, value) in points.items():
        rows.append(row(variant=variant, model=model, k=k, memory=memory, value=value))
        rows.append(
            row(
                variant=variant, model=model, metric="training_flops", task="", set="", k=0,
                memory="", value=flops,
            )
        )  # fmt: skip
    return rows


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = distances(1.0, 2.0)
    write_rows(rows, tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == rows
    write_rows(rows, tmp_path / "again.parquet")
    same = (tmp_path / "rows.parquet").read_bytes()
    assert (tmp_path / "again.parquet").read_bytes() == same


def test_tables_of_two_stores_are_joined_by_recipe() -> None:
    """What this store has replaces, what it lacks is kept, another recipe is left out and told."""
    mine = [row(seed=0, value=1.0), row(seed=0, value=2.0, metric="cmmd")]
    earlier = [
        row(seed=0, value=9.0), row(seed=0, value=9.0, metric="fid"),
        row(seed=1, value=3.0), row(seed=2, value=4.0, recipe="old"),
        row(seed=1, value=5.0, variant="gone"),
    ]  # fmt: skip
    recipes = {("main", seed): "r" * 64 for seed in range(3)}
    rows, left_out = join(mine, earlier, recipes)
    assert [(one["seed"], one["metric"], one["value"]) for one in rows] == [
        (0, "cmmd", 2.0), (0, "kid", 1.0), (1, "kid", 3.0),
    ]  # fmt: skip
    assert left_out == [("gone", 1), ("main", 2)]
    assert join(rows, rows, recipes) == (rows, [])
    assert join([], rows, recipes) == (rows, [])


def test_a_missing_table_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run the study first"):
        read_rows(tmp_path / "rows.parquet")


def test_a_cell_is_the_mean_and_the_range_of_its_seeds() -> None:
    cell = Results([row(seed=seed, value=float(seed)) for seed in (3, 1, 2)]).cell(
        Where(metric="kid", model="ra", set="familiar")
    )
    assert cell is not None
    assert cell.mean == 2.0
    assert cell.spread == (1.0, 3.0)
    assert cell.n == 900


def test_a_number_that_is_two_numbers_is_refused() -> None:
    results = Results([row(k=1), row(k=2)])
    with pytest.raises(ValueError, match="name k and memory"):
        results.cell(Where(metric="kid", model="ra", set="familiar"))


@pytest.mark.parametrize(
    ("ours", "base", "width", "holds"),
    [
        (0.5, 1.0, 0.1, True),  # half, intervals apart
        (0.8, 1.0, 0.05, False),  # apart, but only 20 % less
        (0.5, 1.0, 0.5, False),  # half, but the intervals meet
        (1.5, 1.0, 0.1, False),
    ],
)
def test_the_bar_of_kid_on_familiar_documents(
    ours: float, base: float, width: float, holds: bool
) -> None:
    found = claims(Results(distances(ours, base, width=width)), budgets=())
    assert [claim.holds for claim in found] == [holds]


def test_a_distance_is_told_prompt_by_prompt_where_that_was_measured() -> None:
    rows = distances(0.0005, 0.001)
    pairs = [
        row(metric="kid_difference", seed=seed, value=-5e-4, low=-6e-4, high=-4e-4)
        for seed in range(3)
    ]
    (without,), (told,) = (claims(Results(some), budgets=()) for some in (rows, rows + pairs))
    assert "prompt by prompt" not in without.measured
    assert told.measured == f"{without.measured}; prompt by prompt -0.5 [-0.558, -0.442]"


def test_a_curve_is_over_the_splits_that_all_its_budgets_have() -> None:
    points = {"budget-half": (1e12, 4.0), "main": (4e12, 2.0)}
    rows = curve("ra", 2, "restricted", points)
    rows += [one | {"seed": 1, "value": 50.0} for one in rows if one["variant"] == "main"]
    found = compute_curve(
        Results(rows),
        *("kid", "ra"),
        budgets=["budget-half", "budget-eighth"],
        documents="familiar",
        k=2,
        memory="restricted",
    )
    assert [(point.flops, point.score.mean) for point in found] == [(1e12, 4.0), (4e12, 2.0)]


def test_splits_count_together_and_none_may_say_the_opposite() -> None:
    rows = distances(0.5, 1.0)
    rows[-1]["low"] = 0.55  # the two meet on this split alone
    (claim,) = claims(Results(rows), budgets=())
    assert claim.holds
    assert "2 of 3 splits alone" in claim.measured
    rows[-2] |= {"value": 1.2, "low": 1.1, "high": 1.3}  # worse on this split
    (claim,) = claims(Results(rows), budgets=())
    assert not claim.holds


@pytest.mark.parametrize(
    ("ones", "holds", "told"),
    [
        ([(0.05, 0.02), (0.03, -0.01)], True, "above 0 on 1 of 2 splits alone"),
        ([(0.05, 0.02)] * 9 + [(-0.01, -0.04)], True, "above 0 on 9 of 10 splits alone"),
        (
            [(0.05, 0.02)] * 9 + [(-0.04, -0.07)],
            False,
            "above 0 on 9 of 10 splits alone, below it on 1",
        ),
        ([(0.05, 0.02), (-0.01, -0.04)], False, "above 0 on 1 of 2 splits alone"),
    ],
)
def test_a_gain_holds_by_its_mean_where_no_splits_interval_is_on_the_other_side(
    ones: list[tuple[float, float]], holds: bool, told: str
) -> None:
    """A value below 0 that is within its own error says nothing against it."""
    rows = [
        row(metric="cider_gain", task="caption", seed=s, value=v, low=low, high=2 * v - low)
        for s, (v, low) in enumerate(ones)
    ]
    (claim,) = claims(Results(rows), budgets=())
    assert claim.holds == holds
    assert claim.measured.endswith(f"; {told}")


def cell_of(*ones: tuple[float, float | None, float | None]) -> Cell:
    rows = [row(seed=n, value=v, low=low, high=high) for n, (v, low, high) in enumerate(ones)]
    found = Results(rows).cell(Where(metric="kid", model="ra", set="familiar"))
    assert found is not None
    return found


def test_the_interval_of_a_mean_is_by_splits_and_over_splits() -> None:
    assert cell_of((2.0, 1.5, 3.0)).interval == (1.5, 3.0)
    equal = cell_of(*[(2.0, 1.7, 2.6)] * 4).interval
    assert equal == pytest.approx((2 - 0.3 / 2, 2 + 0.6 / 2))
    apart = cell_of((1.0, 0.99, 1.01), (3.0, 2.99, 3.01)).interval
    assert apart == pytest.approx((2 - 1.96, 2 + 1.96))  # sd sqrt(2), over sqrt(2)
    assert cell_of((1.0, 0.5, 1.5), (1.0, None, None)).interval is None


def test_the_interval_of_a_share_stays_a_share_and_that_of_a_gain_does_not() -> None:
    ends = [{"value": 0.99, "low": 0.97, "high": 1.0}, {"value": 0.71, "low": 0.6, "high": 0.8}]
    for metric, top in (("few_shot_accuracy", 1.0), ("few_shot_gain", 0.85 + 1.96 * 0.14)):
        rows = [row(metric=metric, unit="fraction", seed=s, **one) for s, one in enumerate(ends)]
        cell = Results(rows).cell(Where(metric=metric, model="ra", set="familiar"))
        assert cell is not None
        assert cell.interval == pytest.approx((0.85 - 1.96 * 0.14, top))


def test_splits_of_several_variants_are_those_that_all_have() -> None:
    rows = [row(variant=name, seed=seed) for name, seed in (("a", 1), ("a", 2), ("b", 2), ("c", 3))]
    results = Results(rows)
    assert results.seeds_of(["a"]) == (1, 2)
    assert results.seeds_of(["a", "b"]) == (2,)
    assert results.seeds_of(["a", "c"]) == results.seeds_of([]) == ()


def test_an_interval_covers_the_mean_of_independent_splits() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        values = random.normal(5.0, 1.0, 3).tolist()
        low, high = cell_of(*[(v, v - 1.96, v + 1.96) for v in values]).interval or (0.0, 0.0)
        covered += low <= 5.0 <= high
    assert covered / 400 > 0.94


def test_the_share_of_compute_is_interpolated_in_log_flops() -> None:
    ours = curve("ra", 2, "restricted", {"budget-half": (1e12, 4.0), "main": (4e12, 2.0)})
    other = curve("causal", 0, "", {"main": (8e12, 3.0)})
    share = share_of_compute(
        Results([*ours, *other]), "kid", ours="ra", other="causal", budgets=["budget-half"]
    )
    assert share is not None
    assert share.value is not None
    assert math.isclose(share.value, 2e12 / 8e12)


def test_a_goal_that_no_budget_reaches_is_not_reached() -> None:
    ours = curve("ra", 2, "restricted", {"main": (4e12, 5.0)})
    other = curve("causal", 0, "", {"main": (8e12, 3.0)})
    share = share_of_compute(
        Results([*ours, *other]), "kid", ours="ra", other="causal", budgets=["budget-half"]
    )
    assert share is not None
    assert share.value is None


def test_points_of_a_curve_are_those_of_budgets_and_main() -> None:
    points = {"main": (4e12, 2.0), "budget-half": (2e12, 3.0), "alpha-0": (4e12, 9.0)}
    found = compute_curve(
        Results(curve("ra", 2, "restricted", points)),
        *("kid", "ra"),
        budgets=["budget-half"],
        documents="familiar",
        k=2,
        memory="restricted",
    )
    assert [(point.flops, point.score.mean) for point in found] == [(2e12, 3.0), (4e12, 2.0)]


def test_every_number_of_the_page_is_a_row() -> None:
    rows = distances(0.000123, 0.000789, width=0.00001)
    page = render(rows, study="test", variants=VARIANTS, notes="Said by people.")
    assert "0.123 [0.117, 0.129]" in page.markdown
    assert "0.789 [0.783, 0.795]" in page.markdown
    assert "Said by people." in page.markdown
    assert re.search(r"KID, times 1000, below vanilla CM3 .* \| yes \|", page.markdown)
    assert page == render(rows, study="test", variants=VARIANTS, notes="Said by people.")


def test_variants_without_rows_are_left_out() -> None:
    page = render(distances(1.0, 2.0), study="test", variants=VARIANTS, notes="")
    assert "alpha 0" not in page.markdown
    rows = [*distances(1.0, 2.0), row(variant="alpha-0", value=1.5)]
    page = render(rows, study="test", variants=VARIANTS, notes="")
    line = next(one for one in page.markdown.splitlines() if one.startswith("| alpha 0"))
    assert "| 1500 |" in line  # KID is printed times 1000


def test_the_base_of_ablations_may_be_one_of_them_and_stands_first() -> None:
    variants = VARIANTS | {"plain": Variant(title="nothing", part="ablation", changes={})}
    rows = [row(variant=name, value=0.002) for name in ("alpha-0", "plain")]
    page = render(rows, study="test", variants=variants, base="plain", notes="")
    table = page.markdown.partition("## Ablations")[2].partition("##")[0]
    lines = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert lines[1:] == ["---", "nothing", "alpha 0"]


def test_the_curve_is_drawn() -> None:
    models = (("ra", 2, "restricted"), ("vanilla", 0, ""), ("causal", 0, ""))
    rows = list(
        itertools.chain.from_iterable(
            curve(*model, {"budget-half": (1e12, 4.0), "main": (4e12, 2.0)}) for model in models
        )
    )
    page = render(rows, study="test", variants=VARIANTS, notes="")
    assert page.pictures["kid.svg"].count("<polyline") == 3
    assert page.pictures["kid.svg"].count("<circle") == 6
    assert "](results/kid.svg)" in page.markdown
    assert ">1,000</text>" in page.pictures["kid.svg"]
    assert ">4,000</text>" in page.pictures["kid.svg"]


@pytest.mark.parametrize(
    ("ours", "base", "holds"),
    [
        ((0.8, 0.75, 0.85), (0.5, 0.45, 0.55), True),
        ((0.8, 0.75, 0.85), (0.78, 0.7, 0.8), False),  # vanilla does it, too
        ((0.6, 0.56, 0.65), (0.5, 0.45, 0.55), True),
        ((0.8, 0.45, 0.9), (0.3, 0.2, 0.4), False),  # above vanilla, perhaps by chance
    ],
)
def test_the_bar_of_few_shot_classification(ours: Any, base: Any, holds: bool) -> None:
    rows = [
        row(metric="few_shot_accuracy", task="classify", k=1, memory="demonstrations", model=model)
        | dict(zip(("value", "low", "high"), numbers, strict=True))
        for model, numbers in (("ra", ours), ("vanilla", base))
    ]
    gain = dict(
        zip(("value", "low", "high"), (ours[i] - base[2 - i] for i in (0, 1, 2)), strict=True)
    )
    gain["value"] = ours[0] - base[0]
    rows.append(
        row(metric="few_shot_gain", task="classify", k=1, memory="demonstrations", model="ra")
        | gain
    )
    assert [claim.holds for claim in claims(Results(rows), budgets=())] == [holds]


def test_another_way_of_few_shot_has_claims_and_a_table_of_its_own() -> None:
    variants = VARIANTS | {
        "shown": Variant(title="shown otherwise", part="few-shot", changes={}),
        "silent": Variant(title="not there", part="few-shot", changes={}),
    }
    common = {"task": "classify", "k": 1, "memory": "demonstrations", "variant": "shown"}
    rows = [
        row(metric="few_shot_channel_accuracy", model=model, value=value, **common)
        | {"low": value - 0.01, "high": value + 0.01}
        for model, value in (("ra", 0.875), ("vanilla", 0.625), ("third", 0.5))
    ]
    rows.append(
        row(metric="few_shot_channel_gain", model="ra", value=0.25, **common)
        | {"low": 0.2, "high": 0.3}
    )
    page = render(rows, study="test", variants=variants, notes="").markdown
    about = "### Few-shot classification asked by channel, shown otherwise (1 of 1 hold)"
    line = next(one for one in page.partition(about)[2].splitlines() if one.startswith("| Acc"))
    assert line.startswith("| Accuracy, k = 1 |")
    assert "above 0 on 1 of 1 splits alone" in line
    assert line.endswith("| yes |")
    heading = "### Shown otherwise, asked by channel"
    table = page.partition(heading)[2].partition("##")[0]
    assert "Splits: 0." in table
    told = [line.split("|")[2].strip() for line in table.splitlines() if "familiar" in line]
    assert told == ["ra", "third", "vanilla"]
    assert "not there" not in page.lower()
    assert "asked directly" not in page, "what was not measured has no heading"


def test_retrieval_is_charged_to_whoever_reads_contexts() -> None:
    shown = {"metric": "few_shot_accuracy", "task": "classify", "memory": "demonstrations"}
    results = Results(
        [
            row(metric="image_perplexity", model="other"),
            row(metric="image_perplexity", model="vanilla", k=0, memory=""),
            row(**shown, model="vanilla", k=1),  # shown demonstrations, but it retrieves nothing
        ]
    )
    assert results.reads_contexts("main", "other")
    assert not results.reads_contexts("main", "vanilla")
