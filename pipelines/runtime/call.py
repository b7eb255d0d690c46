"""`StageCall`: a stage with its config and inputs, and the fingerprints that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.runtime.reader import Selection
from pipelines.runtime.stage import ShardPlan, ShardStage, Stage, StageConfig
from storage_schemas.fingerprint import digest_of
from storage_schemas.manifest import Shard

__all__ = ["Result", "StageCall", "artifact_id_of", "shard_key_of"]


@dataclass(frozen=True, kw_only=True)
class StageCall:
    """A stage with its config and inputs: what one task of a flow runs."""

    stage: Stage[Any]
    config: StageConfig
    inputs: Mapping[str, Selection]
    label: str
    """What people see: the stage's name, and which of its calls this is."""
    accept: Callable[[Result], None] | None = None
    """Told the result before it is published; raises to refuse it."""

    @property
    def artifact_id(self) -> str:
        """Known before anything runs."""
        return artifact_id_of(self.stage, self.config, self.inputs)


def artifact_id_of(stage: Stage[Any], config: StageConfig, inputs: Mapping[str, Selection]) -> str:
    """Fingerprint of a stage's result: what it is made by and from, never when or where."""
    return digest_of(
        {
            "stage": stage.name,
            "version": stage.version,
            "kind": stage.kind,
            "environment": stage.environment(config),
            "config": config.canonical(),
            "inputs": {name: sel.content_digest for name, sel in inputs.items()},
        }
    )


def shard_key_of(
    stage: ShardStage[Any], config: StageConfig, plan: ShardPlan, whole: Mapping[str, Selection]
) -> str:
    """Fingerprint of one shard's result: its own inputs, its slice, and what it reads whole."""
    return digest_of(
        {
            "stage": stage.name,
            "version": stage.version,
            "kind": stage.kind,
            "environment": stage.environment(config),
            "config": config.canonical(),
            "inputs": {n: [s.row_digest for s in shards] for n, shards in plan.inputs.items()},
            "slice": plan.slice,
            "tags": plan.tags,
            "whole": {name: selection.content_digest for name, selection in whole.items()},
        }
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What running a stage came to, before it is published."""

    shards: tuple[Shard, ...]
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    counts: dict[str, int]
    facts: dict[str, Any]
    executed: int
