"""The same steps with execution off: what is there, what would run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.runtime.catalog import find_manifest
from pipelines.runtime.store import Store
from pipelines.step import Dag
from storage_schemas.manifest import Manifest

__all__ = ["PlannedStep", "plan_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStep:
    """What would become of one step."""

    label: str
    flow: str
    state: Literal["reused", "to run", "pending"]
    """`to run`: its inputs are there; `pending`: they must be made first."""
    artifact_id: str | None
    seconds: float | None
    """Wall time when it was made."""


def plan_of(dag: Dag, store: Store, *, sources_known: bool) -> tuple[PlannedStep, ...]:
    """Walks the steps and runs none; writes nothing.

    Args:
        dag: the steps of the run.
        store: where their artifacts may be.
        sources_known: whether the run's files are in the ledger; if not, nothing can be named.
    """
    made: dict[str, Manifest] = {}
    planned = []
    for step in dag.steps:
        found, state, name = None, "pending", None
        if sources_known and all(need in made for need in step.needs):
            call = step.make(made)
            name = call.artifact_id
            found = find_manifest(store, step.kind, name)
            state = "to run"
        if found is not None:
            made[step.label] = found
            state = "reused"
        planned.append(
            PlannedStep(
                label=step.label,
                flow=step.flow,
                state=state,  # type: ignore[arg-type]
                artifact_id=name,
                seconds=found.seconds if found else None,
            )
        )
    return tuple(planned)
