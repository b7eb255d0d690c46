"""`racm3 deploy`: registers the flows with a Prefect server and serves them from this process."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flows.cli.opening import named_run, use_store
from flows.cli.options import AsJson, Changes, File, Name, StoreOption
from flows.cli.output import console, print_json

__all__ = ["deploy"]


def deploy(
    name: Name,
    file: File = None,
    changes: Changes = None,
    cron: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FLOW=CRON", help='Schedule of a flow, as ingest="0 2 * * *"; repeatable.'
        ),
    ] = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Register the five flows with the server at PREFECT_API_URL and serve them until stopped."""
    from pipelines.errors import UsageError

    if not os.environ.get("PREFECT_API_URL"):
        raise UsageError(
            "deploy: PREFECT_API_URL is not set; start a server with `prefect server start` and "
            "set it to http://127.0.0.1:4200/api"
        )
    use_store(store)
    if store is not None:
        os.environ["RACM3_STORE"] = os.path.abspath(store)  # noqa: PTH100 - served elsewhere
    config = named_run(name, file, changes)
    crons = _crons(cron or [])

    from prefect import serve

    from flows.deployments import deployments_of

    deployments = deployments_of(config, crons=crons)
    names = [f"{one.flow_name}/{one.name}" for one in deployments]
    if as_json:
        print_json({"deployments": names, "server": os.environ["PREFECT_API_URL"]})
    else:
        console().print(f"serving {', '.join(names)}; stop with Ctrl-C", soft_wrap=True)
    serve(*deployments, print_starting_message=False)


def _crons(given: list[str]) -> dict[str, str]:
    from flows.deployments import FLOWS
    from pipelines.errors import UsageError

    crons = {}
    for text in given:
        flow, equals, schedule = text.partition("=")
        if not equals or flow not in FLOWS:
            raise UsageError(
                f"--cron {text}: write it as flow=cron, flow one of {', '.join(FLOWS)}"
            )
        crons[flow] = schedule
    return crons
