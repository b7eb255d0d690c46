"""Studies: a recipe, its splits and its variants. Each is a function; its docstring says the cost.

A study of one's own is a TOML file: `name`, `recipe` (a recipe or a run file), `seeds`, and a table
for each variant with `title`, `part` (curve, protocol or ablation) and `changes`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flows.recipes import load_run
from pipelines.errors import UsageError
from pipelines.study import Study, Variant

__all__ = ["STUDIES", "load_study"]


def load_study(
    name: str, *, seeds: Sequence[int] | None = None, variants: Sequence[str] | None = None
) -> Study:
    """A study by name or TOML file, narrowed to some of its splits and variants.

    Raises:
        UsageError: for an unknown study, split or variant, or a broken file.
    """
    study = STUDIES[name]() if name in STUDIES else _from_file(name)
    if unknown := sorted(set(variants or ()) - set(study.names)):
        raise UsageError(
            f"study {study.name} has no variant {unknown[0]}; it has {', '.join(study.names)}"
        )
    if unknown_seeds := sorted(set(seeds or ()) - set(study.seeds)):
        raise UsageError(
            f"study {study.name} has no split {unknown_seeds[0]}; it has "
            f"{', '.join(map(str, study.seeds))}"
        )
    kept = study.variants if variants is None else {v: study.variants[v] for v in variants}
    return replace(study, seeds=tuple(seeds or study.seeds), variants=kept)


def _from_file(name: str) -> Study:
    path = Path(name)
    if path.suffix != ".toml":
        near = get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"studies are {', '.join(STUDIES)}"
        raise UsageError(f"there is no study {name}; {hint} (or give a .toml file)")
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not TOML ({error})") from error
    unknown = sorted(set(values) - {"name", "recipe", "seeds", "variants"})
    missing = sorted({"name", "recipe", "seeds"} - set(values))
    if unknown or missing:
        wrong = f"there is no key {unknown[0]}" if unknown else f"{missing[0]} is missing"
        raise UsageError(f"{path}: {wrong}; a study has name, recipe, seeds and variants")
    recipe = str(values["recipe"])
    if recipe.endswith(".toml"):
        recipe = str(path.parent / recipe)
    try:
        variants = {key: Variant(**one) for key, one in values.get("variants", {}).items()}
    except TypeError as error:
        raise UsageError(f"{path}: a variant has title, part and changes ({error})") from error
    return Study(
        name=str(values["name"]),
        recipe=load_run(recipe).model_dump(),
        seeds=tuple(values["seeds"]),
        variants=variants,
    )


def smoke_study() -> Study:
    """Two variants of `smoke` on one split: for tests, and for seeing a study move.

    Cost: two minutes on two cores. Its scores mean nothing.
    """
    recipe = load_run("smoke").model_dump()
    return Study(
        name="smoke-study",
        recipe=recipe,
        seeds=(0,),
        variants={
            "alpha-0": _ablation("alpha 0", recipe, {"stream": {"alpha": 0.0}}),
            "budget-half": Variant(
                title="half the steps",
                part="curve",
                changes={
                    "generators": {
                        name: {"fit": {"steps": 15}, "total_steps": 15}
                        for name in recipe["generators"]
                    }
                },
            ),
        },
    )


def _ablation(title: str, recipe: dict[str, Any], changes: dict[str, Any]) -> Variant:
    """RA-CM3 with some of its generator's keys changed."""
    del recipe
    return Variant(title=title, part="ablation", changes={"generators": {"ra": changes}})


STUDIES: dict[str, Callable[[], Study]] = {"smoke-study": smoke_study}
