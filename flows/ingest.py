"""The flow `ingest`: from links to documents."""

from __future__ import annotations

from prefect import flow

from flows.runner import concurrent, summary_of
from flows.session import open_session
from flows.tasks import publish_summary, run_steps
from pipelines.config import RunConfig

__all__ = ["ingest"]


@flow(name="ingest", task_runner=concurrent(), persist_result=False)
def ingest(config: RunConfig) -> dict[str, str]:
    """Reads metadata, downloads, normalises and curates; only what is new costs anything.

    Returns:
        Artifact ids by step.
    """
    with open_session(config, with_sources=True) as session:
        run_steps(session, session.dag.of_flows("ingest"))
        publish_summary(session, "ingest")
        return summary_of(session)
