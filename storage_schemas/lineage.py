"""Lineage in OpenLineage's words, and the keys that join the tables row by row.

OpenLineage (2-0-2) stops at data sets: a *job* (a stage of a recipe) has *runs*; a run reads and
writes *datasets* (artifacts). Which row came from which is ours: `JOINS` lists every foreign key,
so that a generated picture can be followed to one link of one source file, and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from storage_schemas.manifest import ArtifactRef

__all__ = [
    "JOINS",
    "Dataset",
    "EventType",
    "Job",
    "Join",
    "Run",
    "RunEvent",
    "joins_from",
    "joins_to",
]

EventType = Literal["START", "COMPLETE", "FAIL"]

_PRODUCER = "https://github.com/racm3-pipeline"
_SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What runs again and again: one call of a stage in one recipe."""

    namespace: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One time that a job ran."""

    run_id: str
    """A UUID."""
    facets: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """An artifact of a store, as OpenLineage names it."""

    namespace: str
    """Address of the store."""
    name: str
    """`kind/artifact_id`."""

    @classmethod
    def of(cls, store: str, artifact: ArtifactRef) -> Dataset:
        """The data set of an artifact."""
        return cls(namespace=store, name=f"{artifact.kind}/{artifact.artifact_id}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEvent:
    """One line of a run's event log: START, then one of COMPLETE and FAIL."""

    type: EventType
    time: str
    """ISO 8601 with a time zone."""
    job: Job
    run: Run
    inputs: Sequence[Dataset] = ()
    outputs: Sequence[Dataset] = ()

    def to_json(self) -> dict[str, Any]:
        """As the specification spells it."""
        facet = {"_producer": _PRODUCER, "_schemaURL": _SCHEMA}
        facets = {name: facet | dict(value) for name, value in self.run.facets.items()}
        return {
            "eventType": self.type,
            "eventTime": self.time,
            "producer": _PRODUCER,
            "schemaURL": _SCHEMA,
            "job": {"namespace": self.job.namespace, "name": self.job.name},
            "run": {"runId": self.run.run_id} | ({"facets": facets} if facets else {}),
            "inputs": [{"namespace": d.namespace, "name": d.name} for d in self.inputs],
            "outputs": [{"namespace": d.namespace, "name": d.name} for d in self.outputs],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Join:
    """A foreign key: `table.column` names a row of `to_table` by its `to_column`."""

    table: str
    column: str
    to_table: str
    to_column: str
    meaning: str


JOINS: tuple[Join, ...] = tuple(
    Join(table=table, column=column, to_table=to_table, to_column=to_column, meaning=meaning)
    for table, column, to_table, to_column, meaning in (
        ("images", "row_id", "source_rows", "row_id", "the link it was fetched for"),
        ("normalized_images", "row_id", "images", "row_id", "the bytes it was decoded from"),
        ("documents", "row_id", "source_rows", "row_id", "the row it was made of"),
        ("documents", "duplicate_of", "documents", "document_id", "what is kept in its place"),
        ("embeddings", "document_id", "documents", "document_id", "what was embedded"),
        ("image_tokens", "document_id", "documents", "document_id", "what was tokenised"),
        ("memory", "document_id", "documents", "document_id", "what can be retrieved"),
        ("contexts", "document_id", "documents", "document_id", "what asked"),
        ("contexts", "context_ids", "memory", "document_id", "what was given"),
        ("contexts", "skipped_ids", "memory", "document_id", "what was passed over"),
        ("examples", "document_id", "documents", "document_id", "the main document"),
        ("examples", "candidate_ids", "memory", "document_id", "its contexts"),
        ("generations", "prompt_id", "documents", "document_id", "whose side was the prompt"),
        ("generations", "contexts", "memory", "document_id", "what was read, in this order"),
    )
)
"""Every foreign key, in the order of the pipeline."""


def joins_from(table: str) -> tuple[Join, ...]:
    """What the rows of a table came from."""
    return tuple(join for join in JOINS if join.table == table)


def joins_to(table: str) -> tuple[Join, ...]:
    """What came from the rows of a table."""
    return tuple(join for join in JOINS if join.to_table == table)
