"""The flow `retrain`: contexts, examples, generators, against a memory that is there."""

from __future__ import annotations

from prefect import flow

from flows.runner import concurrent, summary_of
from flows.session import open_session
from flows.tasks import publish_summary, run_steps
from pipelines.config import RunConfig

__all__ = ["retrain"]


@flow(name="retrain", task_runner=concurrent(), persist_result=False)
def retrain(config: RunConfig, artifacts: dict[str, str] | None = None) -> dict[str, str]:
    """Trains the generators on the newest documents and memory, or on named ones.

    Args:
        config: the run.
        artifacts: reference name (`memory.restricted`) -> artifact id, in place of what the
            reference says.

    Returns:
        Artifact ids by step.
    """
    with open_session(config, with_sources=False) as session:
        session.look_up("retrain", artifacts or {})
        run_steps(session, session.dag.of_flows("retrain"))
        publish_summary(session, "retrain")
        return summary_of(session)
