from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli.study import study
from flows.studies import STUDIES, load_study
from pipelines.errors import UsageError
from pipelines.results.rows import read_rows, write_rows
from pipelines.runtime.store import LocalStore
from pipelines.study import MAIN, plan_study

STUDY = """
name = "tiny"
recipe = "small.toml"
seeds = [0]
[variants.alpha-0]
title = "alpha 0"
part = "ablation"
seeds = [0]
changes = { generators = { ra = { stream = { alpha = 0.0 } } } }
"""


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_of_every_study_is_a_whole_run(name: str) -> None:
    study = STUDIES[name]()
    for seed in study.seeds:
        for variant in study.of_split(seed):
            run = study.run(variant, seed)
            assert run.corpus is not None
            assert run.corpus.seed == seed
    assert study.base in study.names


def test_the_study_has_every_line_that_the_paper_has() -> None:
    study = load_study("emoji-study")
    assert study.main_seeds is not None
    assert len(study.main_seeds) == 3
    assert {"ra", "vanilla", "causal"} == set(study.run(MAIN, study.seeds[0]).generators)
    lines = {
        *("image-only", "text-only", "diversity", "no-query-dropout", "alpha-0", "alpha-0.1"),
        *("alpha-1", "k-1", "k-4", "random-training", "memory-eighth", "memory-half"),
    }
    assert lines <= set(study.variants)
    parts = {one.part for one in study.variants.values()}
    assert parts == {"curve", "protocol", "ablation", "few-shot", "sheets"}


def test_budgets_are_equal_within_a_variant_of_the_curve_or_of_few_shot() -> None:
    study = load_study("emoji-study")
    for name, one in study.variants.items():
        if one.part in ("curve", "few-shot"):
            run = study.run(name, study.seeds[0])
            assert len({g.fit.flops_budget for g in run.generators.values()}) == 1


def test_equal_documents_are_equal_documents() -> None:
    study = load_study("emoji-study")
    run = study.run("equal-documents", study.seeds[0])
    seen = {(g.fit.steps, g.stream.batch_size, g.fit.flops_budget) for g in run.generators.values()}
    assert len(seen) == 1


def test_a_study_can_be_narrowed() -> None:
    study = load_study("emoji-study", seeds=[32], variants=[MAIN, "alpha-0"])
    assert study.splits == (32,)
    assert study.asked_of(31) == (MAIN, "alpha-0")
    assert study.asked_of(32) == (MAIN,)  # ablations are of the first split, whatever is asked
    assert load_study("emoji-study", variants=["budget-eighth"]).asked_of(33) == ("budget-eighth",)
    assert load_study("emoji-study").asked_of(34) == ("few-shot-episodes",)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "emoji-stduy"}, "did you mean emoji-study"),
        ({"name": "nowhere.toml"}, "there is no such file"),
        ({"name": "emoji-study", "variants": ["alpha-7"]}, "has no variant alpha-7"),
        ({"name": "emoji-study", "seeds": [3]}, "has no split 3"),
        (
            {"name": "emoji-study", "seeds": [32], "variants": ["alpha-0", "k-4"]},
            "has no alpha-0 or k-4 on split 32",
        ),
        ({"name": "emoji-study", "seeds": [34], "variants": [MAIN]}, "has no main on split 34"),
    ],
)
def test_a_wrong_study_is_one_sentence(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_study(**arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is not TOML"),
        ('name = "a"\nrecipe = "smoke"\n', "seeds is missing"),
        ('name = "a"\nrecipe = "smoke"\nseeds = [0]\nsplits = 3\n', "there is no key splits"),
        (STUDY.replace("title", "titel"), "a variant has title, part and changes"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "small.toml").write_text('extends = "smoke"\n', encoding="utf-8")
    file = tmp_path / "study.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        load_study(str(file))


def test_a_file_says_which_splits_the_recipe_itself_is_run_on(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text('extends = "smoke"\n', encoding="utf-8")
    file = tmp_path / "study.toml"
    both = STUDY.replace("seeds = [0]\n", "seeds = [0, 1]\n")
    file.write_text(both.replace("[var", "main_seeds = [1]\n[var"), encoding="utf-8")
    asked = load_study(str(file))
    assert (asked.asked_of(0), asked.asked_of(1)) == (("alpha-0",), (MAIN, "alpha-0"))


@pytest.mark.prefect
@pytest.mark.timeout(300)
def test_a_study_runs_goes_on_and_writes_its_page(
    lab: Any, small: str, finished: dict[str, Any]
) -> None:
    """Main is there from the run of this folder, so the study trains one generator."""
    (lab.folder / "studied.toml").write_text(small, encoding="utf-8")
    file = lab.folder / "study.toml"
    file.write_text(STUDY.replace("small.toml", "studied.toml"), encoding="utf-8")
    page = lab.folder / "results" / "tiny.md"
    page.parent.mkdir(exist_ok=True)
    told = ("--store", str(lab.store), "--page", str(page), "--json")
    first = lab.racm3("study", str(file), *told, executor="local")
    assert json.loads(first.stdout)["runs"] == 2
    assert "alpha-0/train_generator[ra]" in first.stderr
    assert "train_encoder: reused" in first.stderr
    text = page.read_text(encoding="utf-8")
    rows = read_rows(page.parent / "results" / "tiny.parquet")
    assert {row["variant"] for row in rows} == {MAIN, "alpha-0"}
    assert "| alpha 0 |" in text

    again = lab.racm3("study", str(file), *told, "--variant", "main", executor="local")
    assert "train_generator[ra]: reused" in again.stderr
    assert page.read_text(encoding="utf-8") == text  # it tells of what was run before, too
    page.unlink()
    lab.racm3("study", str(file), *told, "--page-only", executor="local")
    assert page.read_text(encoding="utf-8") == text

    (page.parent / "results" / "tiny.parquet").unlink()
    page.unlink()
    lab.racm3("study", str(file), *told, "--gather", executor="local")
    assert page.read_text(encoding="utf-8") == text
    assert read_rows(page.parent / "results" / "tiny.parquet") == rows
    older = pa.Table.from_pylist(rows).drop_columns("recipe")
    pq.write_table(older, page.parent / "results" / "tiny.parquet")
    gathered = lab.racm3("study", str(file), *told, "--gather", executor="local")
    assert "it has other columns" in json.loads(gathered.stdout)["left_out"][0]
    assert read_rows(page.parent / "results" / "tiny.parquet") == rows

    two = file.read_text("utf-8").replace("seeds = [0]", "seeds = [0, 1]", 1)
    file.write_text(two, encoding="utf-8")
    table = page.parent / "results" / "tiny.parquet"
    elsewhere = [row | {"seed": 1} for row in rows]  # of this recipe is only what split 0 made
    write_rows([*rows, *elsewhere], table)
    gathered = lab.racm3("study", str(file), *told, "--gather", executor="local")
    assert json.loads(gathered.stdout)["left_out"] == ["alpha-0 of split 1", "main of split 1"]
    assert read_rows(table) == rows
    file.write_text(two.replace("seeds = [0]", "seeds = [0, 1]"), encoding="utf-8")
    recipes = plan_study(load_study(str(file)), 1, LocalStore(lab.store), lab.folder).recipes
    elsewhere = [row | {"recipe": recipes[row["variant"]]} for row in elsewhere]
    write_rows([*rows, *elsewhere], table)
    lab.racm3("study", str(file), *told, "--gather", executor="local")
    assert {(row["variant"], row["seed"]) for row in read_rows(table)} == {
        *((MAIN, 0), (MAIN, 1), ("alpha-0", 0), ("alpha-0", 1)),
    }

    planned = lab.racm3("study", str(file), *told, "--seed", "0", "--plan", executor="local")
    steps = json.loads(planned.stdout)["steps"]
    assert {step["state"] for step in steps} == {"reused"}


def test_there_is_nothing_to_gather_in_an_empty_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RACM3_STORE", "")
    page = tmp_path / "page.md"
    with pytest.raises(UsageError, match="no scores of it yet"):
        study(
            "smoke-study", page=page, gather=True, dry=False, page_only=False,
            seed=None, variant=None, store=str(tmp_path / "none"), as_json=False,
        )  # fmt: skip
    assert not page.exists()
