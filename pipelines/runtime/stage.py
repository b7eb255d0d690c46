"""What a stage is: a pure function of its inputs and its config, in one of two shapes.

A `ShardStage` turns input shards into output shards, one at a time, anywhere. A `FitStage` reads
all of its inputs and makes one result. Both say what they do; `pipelines.runtime.run` does ids,
receipts, executors, the conservation check and publishing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from pipelines.runtime.reader import Reader, Selection
from storage_schemas.manifest import Shard

__all__ = [
    "C",
    "FitGroup",
    "FitOutput",
    "FitStage",
    "ShardOutput",
    "ShardPlan",
    "ShardStage",
    "Stage",
    "StageConfig",
    "Workspace",
]


class StageConfig(BaseModel):
    """Base of every stage's config: frozen, unknown keys refused; holds only what changes bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    later: ClassVar[Mapping[str, Any]] = {}
    """Fields that came when there were artifacts already (`name`, or `record.name`), each with the
    value that says what was done before. At that value a field is left out of what is dumped, so
    that fingerprints stay and an upgrade makes nothing anew. A field whose coming changed the
    result is no such field: bump the stage's version."""

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        for path, before in self.later.items():
            *outer, name = path.split(".")
            holder: Any = self
            dumped: dict[str, Any] = values
            for part in outer:
                holder, dumped = getattr(holder, part), dumped.get(part, {})
            if getattr(holder, name) == before:
                dumped.pop(name, None)
        return values

    def canonical(self) -> dict[str, Any]:
        """As plain JSON: what enters fingerprints and manifests."""
        return self.model_dump(mode="json")


C = TypeVar("C", bound=StageConfig)

Inputs = Mapping[str, Selection]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """One unit of work, as data: it crosses to a worker and enters the shard key."""

    inputs: Mapping[str, tuple[Shard, ...]]
    """Shards to read, by the name of the input."""
    slice: Mapping[str, Any] = field(default_factory=dict)
    """The slice of global decisions that this shard reads; plain JSON."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the output shard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardOutput:
    """What became of one shard."""

    table: pa.Table
    rows_in: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows that are not in `table` at all, by reason; rows with an outcome count themselves."""
    counts: Mapping[str, int] = field(default_factory=dict)


ShardFunction = Callable[[ShardPlan, Reader], ShardOutput]


@dataclass(frozen=True, kw_only=True, slots=True)
class FitGroup:
    """This process among those that fit together; alone by default."""

    rank: int = 0
    world_size: int = 1
    wrap: Callable[[Any], Any] | None = None
    """Makes a module's gradients common to the group; None: there is nobody else."""
    after_checkpoint: Callable[[int], None] | None = None
    """Every rank calls it with the step whose checkpoint is on the disk; None: nobody waits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """Where a fit may write, and whom it fits with."""

    progress: Path
    """What an unfinished fit resumes from; kept until it publishes."""
    staging: Path
    """Private to this attempt."""
    events: Path
    """Of the run: where TensorBoard events of this fit belong, made by whoever writes any."""
    report: Callable[[int, int, str], None]
    """Called with (done, total, a few words) for whoever waits."""
    threads: int = 1
    """Threads that this fit may use; a constant, because their number shows in the last bits."""
    rank: int = 0
    """Of this process; rank 0 writes checkpoints and its output is the result."""
    world_size: int = 1
    wrap: Callable[[Any], Any] | None = None
    """See `FitGroup.wrap`."""
    after_checkpoint: Callable[[int], None] | None = None
    """See `FitGroup.after_checkpoint`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOutput:
    """What a fit made."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """By the name under which later stages read them; moved into the store."""
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    rows_in: int = 0
    rows_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Stage(ABC, Generic[C]):
    """Name, version and result of a stage."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Bumped when the meaning of the result changes."""
    kind: str
    """Kind of artifact it makes."""
    config_type: ClassVar[type[StageConfig]]

    def environment(self, config: C) -> str:
        """What else changes bytes and is no config, such as the version of a wrapped tool."""
        return ""


class ShardStage(Stage[C]):
    """Input shards to output shards, each on its own."""

    whole_inputs: ClassVar[tuple[str, ...]] = ()
    """Inputs that every shard reads whole (a model, an index): they enter each shard key."""
    gpu: ClassVar[bool] = False
    deadline: ClassVar[float] = 3600.0
    """Seconds after which a single shard is given up and tried again elsewhere."""

    @abstractmethod
    def plan(self, config: C, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """Lists the units of work; global decisions are taken here, on small columns."""

    @abstractmethod
    def build(self, config: C, whole: Inputs, reader: Reader) -> ShardFunction:
        """Builds the shard function inside the worker, once: models are loaded here."""


class FitStage(Stage[C]):
    """All inputs to one result."""

    gpu: ClassVar[bool] = False

    def workers(self, config: C) -> int:
        """How many processes fit together; more than one runs under Ray Train."""
        return 0

    @abstractmethod
    def fit(self, config: C, inputs: Inputs, reader: Reader, workspace: Workspace) -> FitOutput:
        """Makes the result; resumes from `workspace.progress` when something is there."""
