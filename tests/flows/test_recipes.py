from __future__ import annotations

from pathlib import Path

import pytest

from flows.recipes import RECIPES, load_run, read_changes
from flows.recipes_emoji import smoke
from pipelines.corpus import known_sources, prepare_sources
from pipelines.errors import UsageError
from pipelines.runtime.store import LocalStore


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


LAION = [name for name in RECIPES if name.startswith("laion")]
SIZES = {"laion-125m": (12, 768), "laion-350m": (24, 1024), "laion-1.3b": (24, 2048),
         "laion-2.7b": (32, 2560)}  # fmt: skip


def test_there_is_a_laion_recipe_of_every_size() -> None:
    assert sorted(SIZES) == sorted(LAION)


@pytest.mark.parametrize("name", LAION)
def test_laion_recipes_are_the_papers_setting(name: str) -> None:
    run = load_run(name)
    assert run.normalize.image_size == run.image_tokenizer.image_size == 256
    assert run.image_tokenizer.model.grid == (32, 32)
    specials = 4 + run.generators["ra"].num_sentinels
    assert (run.text_tokenizer.vocab_size, run.image_tokenizer.model.codebook_size) == (56320, 8192)
    assert specials + 56320 + 8192 == 65536
    assert run.embed.pretrained is not None
    assert run.embed.pretrained.model == "ViT-L-14"
    assert run.retrieve.selection.near_copy == 0.9
    assert run.retrieve.selection.compare == "document"
    for generator, k in (("ra", 2), ("vanilla", 0)):
        config = run.generators[generator]
        shape = config.shape(num_places=1)
        assert (shape.layers, shape.width) == SIZES[name]
        assert shape.max_length == config.stream.max_length == 4096
        assert shape.checkpoint_activations
        assert config.bf16
        assert (config.stream.max_k, config.stream.alpha) == (k, 0.1)
        assert config.fit.betas == (0.9, 0.98)
        assert (config.fit.warmup_steps, config.fit.clip) == (1500, 1.0)
        document = run.max_text_tokens + 1024 + 2
        assert (k + 1) * document + 3 * config.stream.most_spans <= 4096  # none is left out
    ra, vanilla = (run.generators[name] for name in ("ra", "vanilla"))
    assert ra.fit == vanilla.fit


def test_a_recipe_without_files_is_planned_and_not_run(tmp_path: Path) -> None:
    run = load_run("laion-125m")
    store = LocalStore(tmp_path)
    assert known_sources(store, run, tmp_path) is None
    with pytest.raises(UsageError) as caught:
        prepare_sources(run, tmp_path)
    assert str(caught.value).startswith("laion-125m: give the files of laion and coco, by --set")
    assert "\n" not in str(caught.value)
    sources = (
        'sources=[{name="laion", paths=["a.parquet"], role="train"}, '
        '{name="coco", paths=["b.parquet"], role="evaluation", set="coco"}]'
    )
    given = load_run("laion-125m", changes=[read_changes(sources)])
    assert [source.paths for source in given.sources] == [("a.parquet",), ("b.parquet",)]
    with pytest.raises(UsageError, match="no file matches"):
        prepare_sources(given, tmp_path)
