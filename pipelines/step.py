"""A run as data: steps that name what they need, and make their call when that is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.runtime.reader import Selection
from pipelines.runtime.run import StageCall
from pipelines.runtime.stage import Stage, StageConfig
from storage_schemas.fingerprint import digest_of
from storage_schemas.manifest import Manifest

__all__ = ["Dag", "Inputs", "Step", "step_of"]

Inputs = Mapping[str, Selection]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of a stage within a run."""

    label: str
    needs: tuple[str, ...]
    """Labels of the steps whose artifacts it reads."""
    make: Callable[[Mapping[str, Manifest]], StageCall]
    flow: str
    """The flow it belongs to: ingest, build_memory, retrain or evaluate."""
    kind: str
    """Kind of artifact it makes."""
    identity: str
    """Digest of what is known of it before anything is made: steps of two runs that have the same
    one, and the same sources, are the same step."""
    ref: str
    """Name of the reference that follows it: `documents`, `memory.restricted`, ..."""


@dataclass(frozen=True, kw_only=True)
class Dag:
    """All steps of a run, each after what it needs."""

    steps: tuple[Step, ...]

    def of_flows(self, *flows: str) -> tuple[Step, ...]:
        """The steps of some flows, in order."""
        return tuple(step for step in self.steps if step.flow in flows)

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """(needed, needing) pairs."""
        return tuple((need, step.label) for step in self.steps for need in step.needs)


def step_of(
    label: str,
    stage: Stage[Any],
    config: StageConfig,
    needs: Sequence[str],
    inputs: Callable[[Mapping[str, Manifest]], Inputs],
    flow: str,
    *,
    chosen_by: Any = None,
) -> Step:
    """A step; `chosen_by` is what its inputs depend on besides the artifacts that it needs."""

    def make(made: Mapping[str, Manifest]) -> StageCall:
        return StageCall(stage=stage, config=config, inputs=inputs(made), label=label)

    return Step(
        label=label,
        needs=tuple(dict.fromkeys(needs)),
        make=make,
        flow=flow,
        kind=stage.kind,
        identity=digest_of(
            [label, stage.name, stage.version, config.model_dump(mode="json"), chosen_by]
        ),
        ref=_ref(stage.kind, label),
    )


def _ref(kind: str, label: str) -> str:
    which = label.partition("[")[2].rstrip("]").replace(", ", ".")
    return f"{kind}.{which}" if which else kind
