"""The source ledger: every source shard ever added, in order; append-only, one a namespace."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.errors import FoundWrong, UsageError
from pipelines.runtime.reader import Selection
from pipelines.runtime.store import Store
from storage_schemas.fingerprint import canonical_json, digest_of, sha256_file
from storage_schemas.manifest import Manifest, Shard

__all__ = ["LedgerEntry", "NewSource", "add_sources", "as_selection", "read_ledger"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NewSource:
    """A source file that a recipe names."""

    source: str
    path: Path
    role: str
    set: str | None = None
    as_of: str
    """Day from which its links count as fetched; moving it fetches them anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """One source shard in the ledger."""

    n: int
    """Place in the order of adding: earlier documents win over later copies."""
    source: str
    path: str
    """Where the file was last seen; informational, the digest is its identity."""
    sha256: str
    bytes: int
    role: str
    set: str | None
    as_of: str


def read_ledger(store: Store, namespace: str) -> list[LedgerEntry]:
    """All entries in order.

    Raises:
        FoundWrong: when an entry is torn, altered or missing.
    """
    keys = store.list(f"_sources/{namespace}")
    entries = [_entry(store, key) for key in keys]
    for expected, entry in enumerate(entries):
        if entry.n != expected:
            raise FoundWrong(f"_sources/{namespace}: entry {expected} is missing; restore it")
    return entries


def add_sources(store: Store, namespace: str, sources: Iterable[NewSource]) -> list[LedgerEntry]:
    """Appends the files that are not there yet; returns the entries of all files named.

    A file that is there keeps its place and its `as_of`, whatever the file is called now.

    Raises:
        UsageError: for a missing file, or a file that is known under another role or set.
    """
    entries = read_ledger(store, namespace)
    known = {(entry.source, entry.sha256): entry for entry in entries}
    named = []
    for source in sources:
        digest, size = _identify(source)
        entry = known.get((source.source, digest))
        if entry is None:
            entry = _append(store, namespace, source, digest=digest, size=size)
        if (entry.role, entry.set) != (source.role, source.set):
            raise UsageError(
                f"source {source.source}: {source.path.name} is in the ledger as {entry.role} "
                f"(set {entry.set}), the recipe says {source.role} (set {source.set}); "
                "use another namespace"
            )
        here = LedgerEntry(**(asdict(entry) | {"path": str(source.path.absolute())}))
        known[source.source, digest] = here
        named.append(here)
    return sorted(named, key=lambda entry: entry.n)


def as_selection(entries: Iterable[LedgerEntry]) -> Selection:
    """The source files as the input of a stage."""
    shards = tuple(
        Shard(
            name="source",
            path=entry.path,
            sha256=entry.sha256,
            bytes=entry.bytes,
            rows=0,
            row_digest=entry.sha256,
            tags={
                "source": entry.source,
                "role": entry.role,
                "set": entry.set or "",
                "as_of": entry.as_of,
                "order": f"{entry.n:08d}",
            },
        )
        for entry in entries
    )
    manifest = Manifest(
        kind="sources",
        schema_version=1,
        artifact_id=digest_of([asdict(s) | {"path": ""} for s in shards]),
        stage="ledger",
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


def _identify(source: NewSource) -> tuple[str, int]:
    if not source.path.is_file():
        raise UsageError(
            f"source {source.source}: there is no file {source.path}; correct `path` in the recipe"
        )
    return sha256_file(source.path), source.path.stat().st_size


def _append(
    store: Store, namespace: str, source: NewSource, *, digest: str, size: int
) -> LedgerEntry:
    """The entry of a file: appended, or the one of another run that was faster."""
    while True:
        entries = read_ledger(store, namespace)
        for entry in entries:
            if (entry.source, entry.sha256) == (source.source, digest):
                return entry
        entry = LedgerEntry(
            n=len(entries),
            source=source.source,
            path=str(source.path.absolute()),
            sha256=digest,
            bytes=size,
            role=source.role,
            set=source.set,
            as_of=source.as_of,
        )
        if store.put_if_absent(f"_sources/{namespace}/{entry.n:08d}.json", _encoded(entry)):
            return entry


def _encoded(entry: LedgerEntry) -> bytes:
    body = asdict(entry)
    return canonical_json(body | {"digest": digest_of(body)})


def _entry(store: Store, key: str) -> LedgerEntry:
    try:
        data = store.get(key) or b""
        body = dict(json.loads(data))
        del body["digest"]
        entry = LedgerEntry(**body)
        if data != _encoded(entry):
            raise ValueError("its digest does not match")
        return entry
    except (ValueError, KeyError, TypeError) as error:
        raise FoundWrong(f"{key}: torn or altered ({error}); restore it from a copy") from error
