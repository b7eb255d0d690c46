"""The flow `end_to_end`: from links to the report."""

from __future__ import annotations

from prefect import flow

from flows.runner import concurrent, summary_of
from flows.session import open_session
from flows.tasks import publish_summary, run_steps
from pipelines.config import RunConfig

__all__ = ["end_to_end"]


@flow(name="end_to_end", task_runner=concurrent(), persist_result=False)
def end_to_end(config: RunConfig) -> dict[str, str]:
    """Runs every step of the recipe, or reuses it.

    Returns:
        Artifact ids by step.
    """
    with open_session(config, with_sources=True) as session:
        run_steps(session, session.dag.steps)
        publish_summary(session, "end_to_end")
        return summary_of(session)
