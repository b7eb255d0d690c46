"""Registering the flows with a Prefect server, by a process of this machine that serves them."""

from __future__ import annotations

from typing import Any

from flows.build_memory import build_memory
from flows.end_to_end import end_to_end
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.retrain import retrain
from pipelines.config import RunConfig

__all__ = ["FLOWS", "deployments_of"]

FLOWS: dict[str, Any] = {
    "ingest": ingest,
    "build_memory": build_memory,
    "retrain": retrain,
    "evaluate": evaluate,
    "end_to_end": end_to_end,
}


def deployments_of(config: RunConfig, *, crons: dict[str, str]) -> list[Any]:
    """One deployment a flow, with the run as its default parameter.

    Args:
        config: the run; its form in the user interface is typed, an unknown key is refused.
        crons: flow -> schedule; flows that are not named run when asked.
    """
    return [
        flow.to_deployment(
            name=config.namespace,
            parameters={"config": config.model_dump(mode="json")},
            cron=crons.get(name),
            tags=["racm3", config.namespace],
            description=(flow.description or "").strip().split("\n")[0],
        )
        for name, flow in FLOWS.items()
    ]
