"""What docs/architecture.md promises about the tree, held true."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import pkgutil
import re
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("racm3", "storage_schemas", "pipelines", "flows")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
STAGES = sorted(
    path.stem for path in (ROOT / "pipelines" / "stages").glob("*.py") if path.stem != "__init__"
)
ANSWERS = re.findall(r"^\| (Where .+\?) \| `([\w.]+)` \|", ARCHITECTURE, re.MULTILINE)


def name_of(path: Path) -> str:
    """Path of a module as its dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_those_of_this_checkout(package: str) -> None:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin == str(ROOT / package / "__init__.py")


def test_ten_questions_are_answered() -> None:
    assert len(ANSWERS) >= 10
    assert len({question for question, _ in ANSWERS}) == len(ANSWERS)


@pytest.mark.parametrize(("question", "answer"), ANSWERS)
def test_answers_exist(question: str, answer: str) -> None:
    parts = answer.split(".")
    for cut in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:cut])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            break
    else:
        pytest.fail(f"{question} {answer} is no module of this checkout")
    found: Any = importlib.import_module(".".join(parts[:cut]))
    for part in parts[cut:]:
        found = getattr(found, part)
    assert parts[cut:], f"{question} name the function or class, not only {answer}"
    assert found.__module__ == ".".join(parts[:cut]), f"{answer} is defined elsewhere"


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_described(stage: str) -> None:
    assert f"`{stage}`" in ARCHITECTURE


def test_described_stages_exist() -> None:
    table = ARCHITECTURE.split("## A record's journey")[1].split("\n## ")[0]
    named = re.findall(r"^\| \d+ \| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(named) == STAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_described(package: str) -> None:
    assert f"`{package}`" in ARCHITECTURE


def test_ray_contracts_cover_all_of_pipelines() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contracts = {contract["id"]: contract for contract in linter["contracts"]}
    with_ray = [name_of(path) for path in SOURCES if path.stem.startswith("ray_")]
    assert all(name.startswith("pipelines.runtime.") for name in with_ray)
    own_files = contracts["ray-in-its-own-files"]
    assert own_files["source_modules"] == ["pipelines"]
    assert own_files["ignore_imports"] == [f"{name} -> ray" for name in with_ray]
    inside = contracts["stages-run-without-ray"]
    assert inside["protected_modules"] == with_ray
    assert inside["allowed_importers"] == ["flows", *with_ray]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_have_docstrings_and_one_idea(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "say in the first line what the module is for"
    assert len(text.splitlines()) <= 400, "split it by idea"


def test_functions_fit_a_screen() -> None:
    too_long = [
        f"{name_of(path)}.{node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > 60
    ]
    assert too_long == []


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring apart."""
    first = function.body[0]
    described = ast.get_docstring(function) is not None
    described_lines = (first.end_lineno or 0) - first.lineno + 1 if described else 0
    return (function.end_lineno or 0) - function.lineno + 1 - described_lines


def test_no_module_shadows_the_standard_library() -> None:
    names = {path.parent.name if path.stem == "__init__" else path.stem for path in SOURCES}
    assert names & sys.stdlib_module_names == set()


def test_tests_are_no_package() -> None:
    # A dependency ships a top-level package `tests`; ours must not fight with it.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


# --- configs --------------------------------------------------------------------------------


def configs() -> dict[str, type]:
    """Every stage config, `RunConfig`, and every record reachable through their fields."""
    stages = importlib.import_module("pipelines.stages")
    for module in pkgutil.iter_modules(stages.__path__, "pipelines.stages."):
        importlib.import_module(module.name)
    base = importlib.import_module("pipelines.runtime.stage").StageConfig
    found: dict[str, type] = {}
    waiting: list[Any] = [
        importlib.import_module("pipelines.config").RunConfig,
        *base.__subclasses__(),
    ]
    while waiting:
        one = waiting.pop()
        name = f"{getattr(one, '__module__', '')}.{getattr(one, '__qualname__', one)}"
        if name in found:
            continue
        if is_record(one):
            found[name] = one
            waiting += annotations_of(one)
        waiting += typing.get_args(one)
    return found


def is_record(one: Any) -> bool:
    """Whether pydantic reads its keys."""
    is_model = isinstance(one, type) and issubclass(one, BaseModel)
    return is_model or (isinstance(one, type) and dataclasses.is_dataclass(one))


def annotations_of(one: Any) -> Iterator[Any]:
    """Types of a record's fields."""
    if issubclass(one, BaseModel):
        yield from (field.annotation for field in one.model_fields.values())
    else:
        hints = typing.get_type_hints(one)
        yield from (hints[field.name] for field in dataclasses.fields(one))


CONFIGS = configs()


def test_a_setting_that_came_later_is_read_back_as_what_was_done_before() -> None:
    """It is left out of manifests at that value (ADR 0012), so that must be its default."""
    listed = {name: one.later for name, one in CONFIGS.items() if getattr(one, "later", None)}
    assert listed
    for name, later in listed.items():
        for path, before in later.items():
            *outer, field = path.split(".")
            record = CONFIGS[name]
            for part in outer:
                record = record.model_fields[part].annotation
            default = (
                record.model_fields[field].default
                if issubclass(record, BaseModel)
                else record.__dataclass_fields__[field].default
            )
            assert default == before, f"{name}.{path}"


def test_configs_are_found() -> None:
    for stage in STAGES:
        assert importlib.import_module(f"pipelines.stages.{stage}").Config in CONFIGS.values()


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_configs_refuse_unknown_keys(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(CONFIGS[name]).validate_python({"no_such_key": 1})
    unknown = {"extra_forbidden", "unexpected_keyword_argument"}
    assert ("no_such_key",) in [e["loc"] for e in caught.value.errors() if e["type"] in unknown]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_configs_are_frozen(name: str) -> None:
    config: Any = CONFIGS[name]
    if issubclass(config, BaseModel):
        assert config.model_config["frozen"]
    else:
        assert config.__dataclass_params__.frozen
