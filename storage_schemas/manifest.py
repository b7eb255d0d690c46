"""What was published: manifests, the shards in them, and the receipts of single shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from storage_schemas.errors import ManifestError
from storage_schemas.fingerprint import canonical_json, digest_of

__all__ = ["ArtifactRef", "InputRef", "Manifest", "Receipt", "Shard"]

_Record = TypeVar("_Record", "Receipt", "Manifest")


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactRef:
    """The only thing that a flow hands from one stage to the next."""

    kind: str
    artifact_id: str
    content_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class InputRef:
    """An input of a stage, by the name under which the stage reads it."""

    name: str
    kind: str
    artifact_id: str
    content_digest: str
    """Of the shards selected: a fit on listed sources names the digest of just those."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One immutable file of an artifact."""

    name: str
    """Table for a Parquet shard (`documents`), file name otherwise (`index.faiss`)."""
    path: str
    """Below the store."""
    sha256: str
    bytes: int
    rows: int
    """0 where it is not a table."""
    row_digest: str
    """Digest of the rows without volatile columns; of the bytes where it is not a table."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What a later stage selects by: source, role, set."""

    @property
    def is_table(self) -> bool:
        """Whether it is Parquet."""
        return self.path.endswith(".parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """Proof that one shard is done; believed by its digest, never by its existence."""

    stage: str
    shard_key: str
    shards: tuple[Shard, ...]
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    counts: Mapping[str, int] = field(default_factory=dict)
    """Other things counted (rules that fired, tokens cut), summed in the manifest."""

    def to_json(self) -> bytes:
        """Canonical JSON with its own digest."""
        body = asdict(self)
        return canonical_json(body | {"digest": digest_of(body)})

    @classmethod
    def from_json(cls, data: bytes, *, name: str) -> Receipt:
        """Reads a receipt.

        Raises:
            ManifestError: when it is torn or altered.
        """
        body = _checked(data, name=name)
        try:
            body["shards"] = tuple(Shard(**shard) for shard in body["shards"])
            receipt = cls(**body)
        except (TypeError, KeyError) as error:
            raise _unknown_fields(name, error) from error
        return _unaltered(receipt, data, name=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """An artifact: what is here, how much, from what, and under which digest."""

    kind: str
    schema_version: int
    artifact_id: str
    stage: str
    stage_version: int
    config: Mapping[str, Any]
    inputs: tuple[InputRef, ...]
    shards: tuple[Shard, ...]
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    counts: Mapping[str, int]
    facts: Mapping[str, Any]
    """What the stage measured about its result (recall, dimensions, chosen step)."""
    environment: str
    """Digest of package versions and platform."""
    run_id: str
    created_at: str
    """Informational: ISO 8601 UTC."""
    seconds: float
    """Informational: wall time of the stage."""
    shards_executed: int
    """Shards computed by the run that published; the others came from receipts."""

    @property
    def content_digest(self) -> str:
        """Equal on every rerun that made the same content."""
        return content_digest_of(self.kind, self.schema_version, self.shards)

    @property
    def ref(self) -> ArtifactRef:
        """What a flow passes on."""
        return ArtifactRef(
            kind=self.kind, artifact_id=self.artifact_id, content_digest=self.content_digest
        )

    def tables(self, name: str | None = None) -> tuple[Shard, ...]:
        """The Parquet shards (of one table)."""
        return tuple(s for s in self.shards if s.is_table and name in (None, s.name))

    def file(self, name: str) -> Shard:
        """The file of that name.

        Raises:
            ManifestError: when the artifact has none.
        """
        for shard in self.shards:
            if shard.name == name and not shard.is_table:
                return shard
        raise ManifestError(f"{self.kind} {self.artifact_id}: has no file {name}")

    def to_json(self) -> bytes:
        """JSON for people and programs, one key a line, with `content_digest` and `digest`."""
        body = json.loads(canonical_json(asdict(self)))
        body["content_digest"] = self.content_digest
        body["digest"] = digest_of(body)
        return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, *, name: str) -> Manifest:
        """Reads a manifest.

        Raises:
            ManifestError: when it is torn or altered; the message names the file.
        """
        body = _checked(data, name=name)
        body.pop("content_digest", None)  # recomputed, and compared with the rest of the bytes
        try:
            body["shards"] = tuple(Shard(**shard) for shard in body["shards"])
            body["inputs"] = tuple(InputRef(**item) for item in body["inputs"])
            manifest = cls(**body)
        except (TypeError, KeyError) as error:
            raise _unknown_fields(name, error) from error
        return _unaltered(manifest, data, name=name)


def content_digest_of(kind: str, schema_version: int, shards: tuple[Shard, ...]) -> str:
    """Digest of what an artifact (or a selection of its shards) holds, whatever its file names."""
    held = sorted([s.name, s.row_digest, s.rows, sorted(s.tags.items())] for s in shards)
    return digest_of([kind, schema_version, held])


def _checked(data: bytes, *, name: str) -> dict[str, Any]:
    try:
        body = json.loads(data)
        said = body.pop("digest")
    except (ValueError, KeyError, AttributeError) as error:
        raise ManifestError(
            f"{name}: torn or not ours ({error}); delete it and run again"
        ) from error
    if digest_of(body) != said:
        raise ManifestError(f"{name}: altered since it was written; delete it and run again")
    return dict(body)


def _unaltered(record: _Record, data: bytes, *, name: str) -> _Record:
    """`record`, when `data` is to the byte what it is written as (spaces and order included)."""
    if record.to_json() != data:
        raise ManifestError(f"{name}: altered since it was written; delete it and run again")
    return record


def _unknown_fields(name: str, error: Exception) -> ManifestError:
    return ManifestError(f"{name}: its fields are not those of this release ({error})")
