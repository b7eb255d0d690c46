"""What the documents tell people to type exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from flows.recipes import load_run
from flows.studies import load_study
from pipelines.results.page import render, sheets_in
from pipelines.results.rows import read_rows

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_readme_names_the_two_commands() -> None:
    assert "make demo" in README
    assert "make test" in README


def test_readme_is_two_screens() -> None:
    assert len(README.splitlines()) <= 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_commands_exist(page: Path) -> None:
    for span in re.findall(r"`{1,3}[^`]+`{1,3}", page.read_text(encoding="utf-8")):
        for target in re.findall(r"\bmake ([a-z-]+)", span):
            assert target in TARGETS, f"{page.name}: the Makefile has no target {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "#")):
            continue
        assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_every_target_has_help() -> None:
    helped = set(re.findall(r"^([a-z-]+):.*## \S", MAKEFILE, re.MULTILINE))
    assert helped == TARGETS


def test_make_alone_prints_every_target() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"^make ([a-z-]+) ", shown, re.MULTILINE)) == TARGETS


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "adr").glob("*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))


def test_the_run_file_of_your_own_data_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    shown = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    file = tmp_path / "mine.toml"
    file.write_text(shown[1], encoding="utf-8")
    config = load_run(str(file))
    assert len(shown[1].splitlines()) == 10
    assert config.sets == ("photos",)
    assert config.normalize.image_size == config.image_tokenizer.model.image_size
    assert config.corpus is None


def test_the_run_file_of_laion_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    shown = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[1]
    file = tmp_path / "mine.toml"
    file.write_text(shown, encoding="utf-8")
    config = load_run(str(file))
    assert config.namespace == "mine"
    assert [len(source.paths) for source in config.sources] == [2, 1]
    assert config.generators["ra"].size == "350m"


def test_the_page_of_results_is_written_from_its_numbers() -> None:
    """Whoever has no store can write the page anew; nobody edits it."""
    study = load_study("emoji-study")
    page = render(
        read_rows(ROOT / "docs" / "results" / "emoji-study.parquet"),
        study=study.name,
        variants=study.variants,
        base=study.base,
        notes=(ROOT / "docs" / "results" / "notes.md").read_text(encoding="utf-8"),
        sheets=sheets_in(ROOT / "docs" / "results"),
    )
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page.markdown
    for name, picture in page.pictures.items():
        assert (ROOT / "docs" / "results" / name).read_text(encoding="utf-8") == picture
