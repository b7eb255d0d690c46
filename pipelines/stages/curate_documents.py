"""Joins captions and normalised images to documents; drops copies and what was suppressed.

Decisions that span shards are taken once, on small columns, with the precedence suppression >
evaluation > order of the ledger. A shard reads only the decisions on its own rows, so an old shard
keeps its bytes whatever comes later, unless a later evaluation document or a suppression hits it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from pipelines.records import KEPT, kept_rows, same_tags
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.stage import (
    Inputs,
    ShardFunction,
    ShardOutput,
    ShardPlan,
    ShardStage,
    StageConfig,
)
from storage_schemas.fingerprint import digest_of
from storage_schemas.ids import caption_sha256, document_id
from storage_schemas.manifest import Manifest, Shard
from storage_schemas.tables import TABLES

__all__ = ["Config", "CurateDocuments", "Outcome", "suppressions"]

Outcome = Literal[
    "kept",
    "download_failed",
    "not_decodable",
    "too_large",
    "too_small",
    "bad_aspect",
    "suppressed",
    "duplicate",
]

_SHAPE = ("too_large", "too_small", "bad_aspect")
"""Reasons of normalisation that are no fault of the file; all others are `not_decodable`."""
_PLACE = ("row_id", "source", "role", "set", "group", "concept", "category", "caption")
_PIXELS = ("width", "height", "image", "pixel_sha256", "perceptual_hash")
_EVALUATION = "evaluation"


class Config(StageConfig):
    """What counts as a copy."""

    duplicates: Literal["pixels", "document"] = Field(
        "pixels",
        description="pixels: equal pixels are copies whatever their captions; "
        "document: only equal image bytes with an equal caption",
    )


class CurateDocuments(ShardStage[Config]):
    """`documents`: one row for each row that `source_rows` kept, documents and reasons alike.

    Of the copies of a document one is kept: an evaluation document before all others, so that
    nothing of it leaks into training or memory, then the earliest in the ledger. The optional
    input `suppressions` (see `suppressions`) removes what it names together with all its copies.
    """

    name = "curate_documents"
    version = 2
    kind = "documents"
    config_type = Config

    def plan(self, config: Config, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """Finds copies over all shards."""
        shards = inputs["rows"].tables("source_rows")
        joined = [
            (shard, same_tags(inputs["images"], shard), same_tags(inputs["normalized"], shard))
            for shard in shards
        ]
        found = [
            candidate
            for index, parts in enumerate(joined)
            for candidate in _candidates(index, *parts, reader=reader)
        ]
        suppressed = frozenset(
            shard.tags["digest"]
            for shard in (inputs["suppressions"].shards if "suppressions" in inputs else ())
        )
        decisions = _decide(found, config, suppressed)
        return [
            ShardPlan(
                inputs={"rows": (rows,), "images": images, "normalized": normalized},
                slice=decisions.get(index, {}),
                tags=dict(rows.tags),
            )
            for index, (rows, images, normalized) in enumerate(joined)
        ]

    def build(self, config: Config, whole: Inputs, reader: Reader) -> ShardFunction:
        """Joins by `row_id`."""
        return _curate


def suppressions(digests: Iterable[str]) -> Selection:
    """The suppression list as an input of the stage.

    Args:
        digests: each a `row_id`, a `document_id`, or the SHA-256 of image bytes or pixels.
    """
    shards = tuple(
        Shard(
            name="suppression",
            path="",
            sha256=digest,
            bytes=0,
            rows=0,
            row_digest=digest,
            tags={"digest": digest},
        )
        for digest in sorted(set(digests))
    )
    manifest = Manifest(
        kind="suppressions",
        schema_version=1,
        artifact_id=digest_of([shard.row_digest for shard in shards]),
        stage="suppressions",
        stage_version=1,
        config={},
        inputs=(),
        shards=shards,
        rows_in=0,
        rows_out=0,
        dropped={},
        counts={},
        facts={},
        environment="",
        run_id="",
        created_at="",
        seconds=0.0,
        shards_executed=0,
    )
    return Selection(manifest=manifest, shards=shards)


# --- global decisions -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """A row that would be a document."""

    shard: int
    row_id: str
    document_id: str
    raw_sha256: str
    pixel_sha256: str
    precedence: tuple[bool, str, int]
    """Smallest wins: not evaluation, order in the ledger, row of the file."""


def _candidates(
    index: int,
    rows: Shard,
    images: Sequence[Shard],
    normalized: Sequence[Shard],
    *,
    reader: Reader,
) -> list[_Candidate]:
    columns = ["row_id", "row_index", "caption", "outcome"]
    table = kept_rows(reader.table(rows, columns))
    fetched = _by_row(reader, images, ["row_id", "raw_sha256", "outcome"])
    pictures = _by_row(reader, normalized, ["row_id", "pixel_sha256", "outcome"])
    later = rows.tags["role"] != _EVALUATION
    return [
        _Candidate(
            shard=index,
            row_id=row["row_id"],
            document_id=_identity(fetched[row["row_id"]]["raw_sha256"], row["caption"]),
            raw_sha256=fetched[row["row_id"]]["raw_sha256"],
            pixel_sha256=pictures[row["row_id"]]["pixel_sha256"],
            precedence=(later, rows.tags["order"], row["row_index"]),
        )
        for row in table.to_pylist()
        if row["row_id"] in fetched
        and _fate(fetched.get(row["row_id"]), pictures.get(row["row_id"])) == KEPT
    ]


def _decide(
    candidates: Iterable[_Candidate], config: Config, suppressed: frozenset[str]
) -> dict[int, dict[str, Any]]:
    """By shard: `duplicates` (row -> document kept in its place) and `suppressed` rows."""
    clusters: dict[str, list[_Candidate]] = defaultdict(list)
    for one in candidates:
        key = one.pixel_sha256 if config.duplicates == "pixels" else one.document_id
        clusters[key].append(one)
    decisions: dict[int, dict[str, Any]] = defaultdict(lambda: {"duplicates": {}, "suppressed": []})
    for members in clusters.values():
        if suppressed and any(_names(one) & suppressed for one in members):
            for one in members:
                decisions[one.shard]["suppressed"].append(one.row_id)
            continue
        first, *copies = sorted(members, key=lambda one: one.precedence)
        for one in copies:
            decisions[one.shard]["duplicates"][one.row_id] = first.document_id
    for decision in decisions.values():
        decision["suppressed"].sort()
    return decisions


def _names(one: _Candidate) -> set[str]:
    return {one.row_id, one.document_id, one.raw_sha256, one.pixel_sha256}


# --- one shard --------------------------------------------------------------------------------


def _curate(plan: ShardPlan, reader: Reader) -> ShardOutput:
    rows = kept_rows(reader.tables(plan.inputs["rows"])).select(list(_PLACE)).to_pylist()
    images = _by_row(reader, plan.inputs["images"], ["row_id", "raw_sha256", "outcome"])
    columns = ["row_id", "outcome", *_PIXELS]
    pictures = _by_row(reader, plan.inputs["normalized"], columns)
    done = [
        _document(row, images.get(row["row_id"]), pictures.get(row["row_id"]), plan.slice)
        for row in rows
    ]
    table = pa.Table.from_pylist(done, schema=TABLES["documents"].arrow)
    return ShardOutput(table=table, rows_in=len(rows))


def _document(
    row: dict[str, Any],
    image: Mapping[str, Any] | None,
    picture: Mapping[str, Any] | None,
    decisions: Mapping[str, Any],
) -> dict[str, Any]:
    """One row of `documents`; the pixels of what is suppressed or a copy are left out."""
    outcome, raw = _fate(image, picture), image["raw_sha256"] if image else None
    identity = _identity(raw, row["caption"]) if raw else None
    copy_of = decisions.get("duplicates", {}).get(row["row_id"])
    if row["row_id"] in decisions.get("suppressed", ()):
        outcome = "suppressed"
    elif copy_of is not None:
        outcome = "duplicate"
    shown = dict.fromkeys(_PIXELS)
    if picture is not None:
        shown = {name: picture[name] for name in _PIXELS}
    if outcome != KEPT:
        shown["image"] = None
    if outcome == "suppressed":
        row, shown = row | {"caption": None}, dict.fromkeys(_PIXELS)
    return row | shown | {"document_id": identity, "duplicate_of": copy_of, "outcome": outcome}


def _fate(image: Mapping[str, Any] | None, picture: Mapping[str, Any] | None) -> str:
    """What becomes of a row by itself; a missing row of a poisoned shard counts as a failure."""
    if image is None or image["outcome"] != KEPT:
        return "download_failed"
    if picture is None:
        return "not_decodable"
    reason = str(picture["outcome"])
    return reason if reason in (KEPT, *_SHAPE) else "not_decodable"


def _identity(raw_sha256: str, caption: str) -> str:
    return document_id(raw_sha256, caption_sha256(caption))


def _by_row(
    reader: Reader, shards: Sequence[Shard], columns: list[str]
) -> dict[str, dict[str, Any]]:
    tables = [reader.table(shard, columns) for shard in shards]
    return {row["row_id"]: row for table in tables for row in table.to_pylist()}
