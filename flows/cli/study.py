"""`racm3 study`: a recipe's variants on several splits, and the page of results."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.opening import named_store, use_store
from flows.cli.options import AsJson, StoreOption
from flows.cli.output import console, print_json, print_table

if TYPE_CHECKING:
    from pipelines.results.rows import Row
    from pipelines.study import Study, StudyPlan

__all__ = ["show_study", "study"]


def study(
    name: Annotated[str, typer.Argument(help="Study (emoji-study) or TOML file.")],
    seed: Annotated[
        list[int] | None, typer.Option(help="Only this split of the study; repeatable.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Only this variant (main is one); repeatable.")
    ] = None,
    page: Annotated[
        Path, typer.Option(help="The page; a folder `results` beside it holds its numbers.")
    ] = Path("results.md"),
    dry: Annotated[bool, typer.Option("--plan", help="Show what would run, and run none.")] = False,
    page_only: Annotated[
        bool, typer.Option("--page-only", help="Write the page anew from its numbers.")
    ] = False,
    gather: Annotated[
        bool, typer.Option("--gather", help="Write it from what the store has; run nothing.")
    ] = False,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Run a study, or go on with it, and write its page of results."""
    from flows.studies import load_study

    use_store(store)
    asked = load_study(name, seeds=seed, variants=variant)
    if dry:
        show_study(asked, as_json)
        return
    whole = load_study(name)  # the page tells of all that is there, whatever was run just now
    if not (page_only or gather):
        _run(asked)
    left_out = [] if page_only else _keep(whole, page)
    written = _write(whole, page)
    if as_json:
        print_json(written | {"left_out": left_out})
        return
    out = console()
    if left_out:
        out.print(f"left out, of another recipe: {', '.join(left_out)}", soft_wrap=True)
    out.print(f"{written['rows']} score rows of {written['runs']} runs: {page}", soft_wrap=True)


def _run(asked: Study) -> None:
    from flows.cli.progress import watcher
    from flows.prefect_server import tie_server
    from flows.session import watched_by

    tie_server()
    from flows.study import study as flow

    with redirect_stdout(sys.stderr), watcher() as progress, watched_by(progress):
        flow(asked)


def show_study(asked: Study, as_json: bool, *, flops_per_second: float | None = None) -> None:
    """What of a study is there, and the hours that the rest would take."""
    rows: list[dict[str, Any]] = []
    for seed, plan in _plans(asked, flops_per_second).items():
        for step in plan.steps:
            one = plan.expected.get(step.label)
            rows.append(
                {"split": seed, "step": step.label, "state": step.state, "seconds": step.seconds}
                | {"expected_seconds": one.seconds if one else None}
            )
    known = [row["expected_seconds"] for row in rows if row["expected_seconds"] is not None]
    if as_json:
        print_json({"study": asked.name, "steps": rows, "expected_seconds": sum(known)})
        return
    columns = ("split", "step", "state", "seconds", "expected_seconds")
    print_table("", columns, [tuple(row[c] or "-" for c in columns) for row in rows])
    there = [row for row in rows if row["state"] == "reused"]
    spent = sum(row["seconds"] or 0.0 for row in there)
    unknown = len(rows) - len(there) - len(known)
    out = console()
    out.print(f"{len(there)} of {len(rows)} steps are there; they took {spent / 3600:.2f} hours")
    out.print(
        f"the rest: {sum(known) / 3600:.2f} hours"
        + (f", without {unknown} steps of which nothing is known" if unknown else "")
    )
    out.print("hours of work: steps that run side by side are counted one by one")


def _plans(asked: Study, flops_per_second: float | None = None) -> Mapping[int, StudyPlan]:
    from flows.settings import Settings
    from pipelines.study import plan_study

    opened, cache = named_store(), Settings().cache
    return {
        seed: plan_study(asked, seed, opened, cache, flops_per_second=flops_per_second)
        for seed in asked.splits
    }


def _keep(asked: Study, page: Path) -> list[str]:
    """Writes the numbers of the runs in the store beside the page, with those already there.

    Returns:
        What was there and is left out, being of another recipe.
    """
    from pipelines.errors import UsageError
    from pipelines.results.retriever_cost import retriever_rows
    from pipelines.results.rows import gather, join, write_rows
    from pipelines.results.sheets import draw_sheets
    from pipelines.study import MAIN

    plans = _plans(asked)
    found = {
        (variant, seed): manifest
        for seed, plan in plans.items()
        for variant, manifest in plan.scores.items()
    }
    if not found:
        raise UsageError(f"study {asked.name}: the store has no scores of it yet; run it first")
    recipes = {
        (variant, seed): recipe
        for seed, plan in plans.items()
        for variant, recipe in plan.recipes.items()
    }
    beside = {(MAIN, seed): retriever_rows(plan.retriever) for seed, plan in plans.items()}
    folder = page.parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{asked.name}.parquet"
    kept, older = _earlier(table)
    rows, left_out = join(gather(named_store(), found, recipes, beside), kept, recipes)
    write_rows(rows, table)
    for plan in plans.values():
        for variant, parts in plan.sheets.items():
            models = {name: one for name, one in parts.items() if name != "documents"}
            for task, png in draw_sheets(named_store(), models, parts["documents"]).items():
                (folder / f"sheet-{variant}-{task}.png").write_bytes(png)
    return older + [f"{variant} of split {seed}" for variant, seed in left_out]


def _earlier(table: Path) -> tuple[list[Row], list[str]]:
    """Rows of the table beside the page; and what of it cannot be kept, in words."""
    from pipelines.errors import UsageError
    from pipelines.results.rows import read_rows

    if not table.is_file():
        return [], []
    try:
        return read_rows(table), []
    except UsageError:  # of a version with other columns: what was run must not be lost for it
        return [], [f"all that was in {table} (it has other columns)"]


def _write(asked: Study, page: Path) -> dict[str, Any]:
    """Writes the page from its numbers."""
    from pipelines.results.page import render, sheets_in
    from pipelines.results.rows import read_rows

    folder = page.parent / "results"
    rows = read_rows(folder / f"{asked.name}.parquet")
    notes = folder / "notes.md"
    made = render(
        rows,
        study=asked.name,
        variants=asked.variants,
        base=asked.base,
        notes=notes.read_text(encoding="utf-8") if notes.is_file() else "",
        sheets=sheets_in(folder),
    )
    page.write_text(made.markdown, encoding="utf-8")
    for name, picture in made.pictures.items():
        (folder / name).write_text(picture, encoding="utf-8")
    runs = {(row["variant"], row["seed"]) for row in rows}
    return {"page": str(page), "rows": len(rows), "runs": len(runs), "pictures": _names(made)}


def _names(made: Any) -> Sequence[str]:
    return sorted(made.pictures)
