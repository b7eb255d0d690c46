"""The flow `evaluate`: generations, scores and the report of generators that are there."""

from __future__ import annotations

from prefect import flow

from flows.runner import concurrent, summary_of
from flows.session import open_session
from flows.tasks import publish_summary, run_steps
from pipelines.config import RunConfig

__all__ = ["evaluate"]


@flow(name="evaluate", task_runner=concurrent(), persist_result=False)
def evaluate(config: RunConfig, artifacts: dict[str, str] | None = None) -> dict[str, str]:
    """Scores the newest generators, or named ones, and writes the report.

    Args:
        config: the run.
        artifacts: reference name (`generator.ra`) -> artifact id, in place of what the reference
            says.

    Returns:
        Artifact ids by step.
    """
    with open_session(config, with_sources=False) as session:
        session.look_up("evaluate", artifacts or {})
        run_steps(session, session.dag.of_flows("evaluate"))
        publish_summary(session, "evaluate")
        return summary_of(session)
