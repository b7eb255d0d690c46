"""One Prefect task per step of the DAG; independent steps run side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.session import Session
from pipelines.step import Step
from storage_schemas.manifest import Manifest

__all__ = ["publish_summary", "run_steps"]


class _Skipped(Exception):
    """A step that was not started, because another one failed."""


def run_steps(
    session: Session, steps: Sequence[Step], *, refer: Sequence[Step] | None = None
) -> None:
    """Submits the steps, each after what it needs, waits for all, and moves the references.

    Args:
        session: of the run.
        steps: in order.
        refer: steps whose references move; None: all.

    Raises:
        BaseException: the first failure; what was running then has ended by itself.
        GateRefused: all is made, but the gate holds back the references of generators.
    """
    futures: dict[str, Any] = {}
    for step in steps:
        before = [futures[need] for need in step.needs if need in futures]
        futures[step.label] = _task_of(session, step).submit(wait_for=before)
    for future in futures.values():
        future.wait()
    if session.failures:
        raise session.failures[0]
    session.conclude(steps if refer is None else refer)


def _task_of(session: Session, step: Step) -> Any:
    """The task of a step. It closes over the session: nothing but an id passes through Prefect."""

    def run() -> str:
        if session.failures:
            raise _Skipped(f"{step.label}: not started, an earlier step failed")
        try:
            return session.execute(step).artifact_id
        except BaseException as error:
            session.failures.append(error)
            raise

    options: dict[str, Any] = {"persist_result": False, "cache_policy": NO_CACHE, "retries": 0}
    return task(name=step.label, **options)(run)


def publish_summary(session: Session, flow: str) -> None:
    """Leaves a table (counts, drops) and a page (what, where) in Prefect."""
    key = f"{flow}-{session.config.namespace}".replace("_", "-").replace(".", "-").lower()
    key = "".join(c if c.isalnum() or c == "-" else "-" for c in key)
    create_table_artifact(
        key=f"{key}-counts",
        table=[_line(label, made) for label, made in session.made.items()],
        description=f"Rows of the flow {flow}, run {session.run.run_id}",
    )
    lines = [
        f"# {flow}: {session.config.namespace}",
        f"* run `{session.run.run_id}`",
        f"* store `{session.store.uri}`",
    ]
    report = session.report_file
    lines += [f"* report `{report}`"] if report else []
    create_markdown_artifact(key=f"{key}-summary", markdown="\n".join(lines))


def _line(label: str, made: Manifest) -> dict[str, Any]:
    dropped = ", ".join(f"{reason} {count}" for reason, count in made.dropped.items())
    return {
        "step": label,
        "artifact": made.artifact_id[:12],
        "rows in": made.rows_in,
        "rows out": made.rows_out,
        "left behind": dropped or "none",
        "seconds": made.seconds,
    }
