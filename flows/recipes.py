"""Recipes: complete, named runs. Each is a function; its docstring says paper, cost and command.

A variant is a few changed keys over a recipe, from a TOML file (`extends = "emoji"`) or from
`--set a.b=value`; the merged whole is validated.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flows.recipes_emoji import EMOJI
from flows.recipes_laion import LAION
from pipelines.config import RunConfig, deep_merge, validated
from pipelines.errors import UsageError

__all__ = ["RECIPES", "load_run", "read_changes", "read_toml"]

RECIPES: dict[str, Callable[[], RunConfig]] = {**EMOJI, **LAION}


def load_run(
    name: str, *, file: str | None = None, changes: Sequence[Mapping[str, Any]] = ()
) -> RunConfig:
    """A run by recipe name, by TOML file, or a recipe with a file over it; then the changes.

    Raises:
        UsageError: for an unknown recipe, a missing or broken file, an unknown key.
    """
    values = _values(name, seen=())
    if file is not None:
        own = _own_values(Path(file))
        own.pop("extends", None)
        values = deep_merge(values, own)
    for change in changes:
        values = deep_merge(values, change)
    return validated(values, name=file or name)


def read_changes(text: str) -> dict[str, Any]:
    """`a.b.c=value` as nested tables; the value is TOML, or a bare string where it is not.

    Raises:
        UsageError: when there is no `=`.
    """
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise UsageError(f"--set {text}: write it as a.b.c=value")
    try:
        parsed: Any = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for key in reversed(keys):
        parsed = {key: parsed}
    return dict(parsed)


def _values(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """What a recipe or a file says, its base below it."""
    if name in RECIPES:
        return RECIPES[name]().model_dump()
    path = Path(name)
    if path.suffix != ".toml":
        near = get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"recipes are {', '.join(RECIPES)}"
        raise UsageError(f"there is no recipe {name}; {hint} (or give a .toml file)")
    if name in seen:
        raise UsageError(f"{name}: extends itself; remove the circle")
    own = _own_values(path)
    base = own.pop("extends", None)
    if base is None:
        return own
    if str(base).endswith(".toml"):
        base = path.parent / str(base)
    return deep_merge(_values(str(base), (*seen, name)), own)


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        UsageError: there is no such file, or it is not TOML.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not TOML ({error})") from error


def _own_values(path: Path) -> dict[str, Any]:
    """A file's own values; paths of its sources are relative to the file."""
    values = read_toml(path)
    sources = values.get("sources")
    if isinstance(sources, list):
        values["sources"] = [_placed(source, path.parent) for source in sources]
    return values


def _placed(source: Any, folder: Path) -> Any:
    if isinstance(source, dict) and isinstance(source.get("paths"), list):
        return source | {"paths": [str(folder / str(path)) for path in source["paths"]]}
    return source
