"""The flow `build_memory`: encoder, tokenizers, vectors, codes, indexes."""

from __future__ import annotations

from prefect import flow

from flows.runner import concurrent, summary_of
from flows.session import open_session
from flows.tasks import publish_summary, run_steps
from pipelines.config import RunConfig

__all__ = ["build_memory"]


@flow(name="build_memory", task_runner=concurrent(), persist_result=False)
def build_memory(config: RunConfig, artifacts: dict[str, str] | None = None) -> dict[str, str]:
    """Builds the memories of the newest documents, or of named ones.

    Args:
        config: the run.
        artifacts: reference name -> artifact id, in place of what the reference says.

    Returns:
        Artifact ids by step.
    """
    with open_session(config, with_sources=False) as session:
        session.look_up("build_memory", artifacts or {})
        run_steps(session, session.dag.of_flows("build_memory"))
        publish_summary(session, "build_memory")
        return summary_of(session)
