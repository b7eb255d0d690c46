from __future__ import annotations

from pathlib import Path

import pytest

from flows.recipes import RECIPES, load_run, read_changes, smoke
from pipelines.errors import UsageError


def test_recipes_are_complete_and_say_what_they_cost() -> None:
    for name, make in RECIPES.items():
        assert make().namespace == name
        doc = make.__doc__ or ""
        assert "2211.12561" in doc
        assert "Cost:" in doc
        assert f"racm3 run {name}" in doc


def test_a_file_extends_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "smoke"\nnamespace = "mine"\n[generators.ra.fit]\nsteps = 7\n')
    run = load_run(str(file))
    assert run.namespace == "mine"
    assert run.generators["ra"].fit.steps == 7
    assert run.generators["vanilla"] == smoke().generators["vanilla"]
    assert load_run("smoke", file=str(file)) == run


def test_changes_come_last(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "smoke"\nmin_success = 0.1\n')
    run = load_run(str(file), changes=[read_changes("min_success=0.2")])
    assert run.min_success == 0.2


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("a.b=3", {"a": {"b": 3}}),
        ("a=0.5", {"a": 0.5}),
        ("a=word", {"a": "word"}),
        ('a=["x", "y"]', {"a": ["x", "y"]}),
        ("a.b = true", {"a": {"b": True}}),
    ],
)
def test_changes_are_toml_or_a_word(text: str, changes: object) -> None:
    assert read_changes(text) == changes


@pytest.mark.parametrize("text", ["a", "=3", "a..b=1"])
def test_a_change_needs_key_and_value(text: str) -> None:
    with pytest.raises(UsageError, match=r"a\.b\.c=value"):
        read_changes(text)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean smoke"):
        load_run("smok")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ("a = ", "is not TOML"),
        ('extends = "mine.toml"', "extends itself"),
        ('extends = "emojis"', "did you mean emoji"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=said):
        load_run(str(file))


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'extends = "smoke"\n[[sources]]\nname = "x"\npaths = ["a/*.parquet"]\nrole = "train"\n'
    )
    assert load_run(str(file)).sources[0].paths == (str(tmp_path / "a" / "*.parquet"),)


def test_own_sources_take_the_place_of_the_demos(tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text(
        'extends = "emoji"\nnamespace = "mine"\ncorpus = false\nmemories.extended = false\n'
        'sources = [{ name = "x", paths = ["x.parquet"], role = "train" }]\n'
        "ingest.split.x = { validation = 0.1, evaluation = 0.1 }\n"
    )
    file = tmp_path / "mine.toml"
    file.write_text('extends = "base.toml"\nmin_success = 0.3\n')
    run = load_run(str(file))
    assert run.corpus is None
    assert list(run.memories) == ["restricted"]
    assert [source.name for source in run.sources] == ["x"]
    assert load_run("emoji", file=str(base)) == load_run(str(base))
    assert load_run(str(base), changes=[read_changes("corpus.flags=9")]).corpus is not None
    assert load_run(
        "smoke", changes=[read_changes("generators.vanilla=false")]
    ).generators.keys() == {"ra"}
