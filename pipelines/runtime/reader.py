"""Reading published shards: by digest, always."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.runtime.store import Store
from storage_schemas.errors import IntegrityError
from storage_schemas.fingerprint import sha256_file
from storage_schemas.manifest import ArtifactRef, InputRef, Manifest, Shard, content_digest_of
from storage_schemas.parquet import decode_shard
from storage_schemas.tables import TABLES

__all__ = ["Reader", "Selection"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """An input as a stage sees it: an artifact, or some of its shards."""

    manifest: Manifest
    shards: tuple[Shard, ...]

    @classmethod
    def of(cls, manifest: Manifest, **tags: Iterable[str]) -> Selection:
        """The shards whose tags are among the given values: `Selection.of(m, role={"train"})`.

        Files (weights, an index) carry no tags and are always selected.
        """
        wanted = {name: frozenset(values) for name, values in tags.items()}
        shards = tuple(
            shard
            for shard in manifest.shards
            if not shard.is_table
            or all(shard.tags.get(name) in values for name, values in wanted.items())
        )
        return cls(manifest=manifest, shards=shards)

    @property
    def content_digest(self) -> str:
        """Of the selected shards."""
        return content_digest_of(self.manifest.kind, self.manifest.schema_version, self.shards)

    def input_ref(self, name: str) -> InputRef:
        """How a manifest records this input."""
        return InputRef(
            name=name,
            kind=self.manifest.kind,
            artifact_id=self.manifest.artifact_id,
            content_digest=self.content_digest,
        )

    @property
    def ref(self) -> ArtifactRef:
        """The artifact as a whole."""
        return self.manifest.ref

    def tables(self, name: str | None = None) -> tuple[Shard, ...]:
        """The selected Parquet shards (of one table)."""
        return tuple(s for s in self.shards if s.is_table and name in (None, s.name))


class Reader:
    """Opens shards and files of one store and refuses bytes that were not published."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def table(self, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        """One shard as a table.

        Raises:
            IntegrityError: when the file is missing or its bytes are not those published.
        """
        data = self.store.get(shard.path)
        if data is None:
            raise IntegrityError(
                f"{shard.path}: is missing from the store; "
                "restore it, or delete the manifest that names it and run again"
            )
        schema = TABLES[shard.name]
        return decode_shard(data, schema, sha256=shard.sha256, name=shard.path, columns=columns)

    def tables(self, shards: Iterable[Shard], columns: list[str] | None = None) -> pa.Table:
        """Several shards of one table, end to end.

        Raises:
            ValueError: when no shard is given.
        """
        parts = [self.table(shard, columns) for shard in shards]
        if not parts:
            raise ValueError("no shard to read: the selection is empty")
        return pa.concat_tables(parts)

    def file(self, shard: Shard) -> Path:
        """A local path of a file whose bytes were checked.

        Raises:
            IntegrityError: when the file is missing or its bytes are not those published.
        """
        path = self.store.local(shard.path)
        if not path.exists():
            raise IntegrityError(
                f"{shard.path}: is missing from the store; "
                "restore it, or delete the manifest that names it and run again"
            )
        if sha256_file(path) != shard.sha256:
            raise IntegrityError(
                f"{shard.path}: the bytes are not those that were published (SHA-256 differs); "
                "restore the file from a copy, or delete the manifest that names it and run again"
            )
        return path

    def files(self, selection: Selection) -> Mapping[str, Path]:
        """All files of an input by name, each checked."""
        return {s.name: self.file(s) for s in selection.shards if not s.is_table}
