"""`racm3 run` and `racm3 plan`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Annotated, Any, Literal

import typer

from flows.cli.opening import named_run, named_store, use_store
from flows.cli.options import AsJson, Changes, File, Name, StoreOption
from flows.cli.output import console, print_json

__all__ = ["plan", "run"]

Flow = Literal["end_to_end", "ingest", "build_memory", "retrain", "evaluate"]


def run(
    name: Name,
    file: File = None,
    changes: Changes = None,
    flow: Annotated[Flow, typer.Option(help="Run only one of the flows.")] = "end_to_end",
    artifact: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ID", help="Use a named artifact as input of the flow; repeatable."
        ),
    ] = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe or a file; what is there already is reused."""
    from flows.cli.progress import MemoryWatch, watcher
    from flows.session import watched_by

    use_store(store)
    config = named_run(name, file, changes)
    named = _named(artifact or [], flow)
    started = time.monotonic()
    # what libraries print (Ray does, when a worker dies) stays out of what we print
    with (
        redirect_stdout(sys.stderr),
        MemoryWatch() as memory,
        watcher() as progress,
        watched_by(progress),
    ):
        made = _flow(flow)(config, **({"artifacts": named} if named else {}))
    result = _result(made, time.monotonic() - started, memory.peak)
    print_json(result) if as_json else _print(result)


def plan(
    name: Name,
    file: File = None,
    changes: Changes = None,
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            min=1.0,
            help="FLOPs a second of one worker in training, such as 4e14; else as was measured.",
        ),
    ] = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run, or a study, would do and cost, and do none of it."""
    from flows.cli.costs import plan_as_dict, print_plan
    from flows.cli.study import show_study
    from flows.settings import Settings
    from flows.studies import STUDIES
    from pipelines.corpus import known_sources
    from pipelines.cost import estimates, generator_cost
    from pipelines.dag import dag_of
    from pipelines.fetch.policy import FetchSettings
    from pipelines.plan import plan_of
    from pipelines.runtime.ledger import as_selection

    use_store(store)
    if name in STUDIES and file is None and not changes:
        show_study(STUDIES[name](), as_json, flops_per_second=flops_per_second)
        return
    config = named_run(name, file, changes)
    opened = named_store()
    sources = known_sources(opened, config, Settings().cache)
    dag = dag_of(config, sources or as_selection([]), FetchSettings())
    planned = plan_of(dag, opened, sources_known=sources is not None)
    expected = estimates(planned, dag, config, opened, flops_per_second=flops_per_second)
    counted = {name: generator_cost(config, name) for name in config.generators}
    costs = {name: cost for name, cost in counted.items() if cost is not None}
    if as_json:
        print_json({"store": opened.uri} | plan_as_dict(planned, expected, costs))
    else:
        print_plan(planned, expected, costs)


def _named(artifact: list[str], flow: str) -> dict[str, str]:
    from pipelines.errors import UsageError

    if artifact and flow in ("end_to_end", "ingest"):
        raise UsageError(
            f"--artifact goes with --flow build_memory, retrain or evaluate, not {flow}"
        )
    pairs = [text.partition("=") for text in artifact]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise UsageError(f"--artifact {wrong[0]}: write it as name=id")
    return {name: value for name, _, value in pairs}


def _flow(name: str) -> Callable[..., Mapping[str, str]]:
    """The Prefect flow of that name; imported late, Prefect takes seconds."""
    from importlib import import_module

    from flows.prefect_server import tie_server

    tie_server()
    found: Callable[..., Mapping[str, str]] = getattr(import_module(f"flows.{name}"), name)
    return found


def _result(made: Mapping[str, str], seconds: float, peak: int) -> dict[str, Any]:
    from flows.cli.scores import telling_rows
    from pipelines.runtime.catalog import find_manifest

    store = named_store()
    artifacts = {label: name for label, name in made.items() if label != "run_id"}
    result: dict[str, Any] = {
        "run_id": made["run_id"],
        "artifacts": artifacts,
        "scores": [],
        "report": None,
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak,
        "store": store.uri,
    }
    scores = artifacts.get("score_generations")
    if scores and (manifest := find_manifest(store, "scores", scores)):
        result["scores"] = telling_rows(store, manifest)
    page = artifacts.get("write_report")
    if page and (manifest := find_manifest(store, "report", page)):
        result["report"] = str(store.local(manifest.file("report.html").path))
    return result


def _print(result: Mapping[str, Any]) -> None:
    from flows.cli.scores import print_scores

    if result["scores"]:
        print_scores(result["scores"])
    out = console()
    out.print(f"run {result['run_id']}: {len(result['artifacts'])} steps", soft_wrap=True)
    out.print(
        f"wall time {result['seconds']:.0f} s, peak memory of all processes "
        f"{result['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    if result["report"]:
        out.print(f"report: {result['report']}", soft_wrap=True)
