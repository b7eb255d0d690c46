"""Lineage, both ways.

From a generated picture back to the URL of each picture it was shown, and from a URL forward to
everything that was made with it, or to the reason why it stopped.

Answers are trees of `Node`s: plain records that a terminal or a program can show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UsageError
from pipelines.records import KEPT
from pipelines.runtime.catalog import find_manifest, manifests
from pipelines.runtime.ledger import read_ledger
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import Store
from storage_schemas.manifest import Manifest, Shard

__all__ = ["Node", "lineage_of"]

_LEAST_DIGITS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One thing on the way, and what it leads to."""

    what: str
    """`generation`, `context`, `document`, `row`, `checkpoint`, ..."""
    id: str
    facts: dict[str, Any] = field(default_factory=dict)
    leads_to: tuple[Node, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def lineage_of(store: Store, text: str) -> list[Node]:
    """The lineage of a generation, a URL, a row, a document or an artifact, by its id.

    Ids may be given by their first 8 digits or more. A generation is followed back, everything
    else that a source holds is followed forward.

    Raises:
        UsageError: when the store knows nothing of that name.
        IntegrityError: when a shard on the way is not what was published.
    """
    search = _Search(store)
    if "://" in text:
        return _required(search.forward("url", text), text)
    if len(text) < _LEAST_DIGITS:
        raise UsageError(f"lineage {text}: give a URL, or at least {_LEAST_DIGITS} digits of an id")
    for answer in (
        search.backward(text),
        search.forward("row_id", text),
        search.of_document(text),
        search.of_artifact(text),
    ):
        if answer:
            return answer
    return _required([], text)


def _required(found: list[Node], text: str) -> list[Node]:
    if not found:
        raise UsageError(
            f"lineage {text}: no row, document, generation or artifact of this store has that name"
        )
    return found


class _Search:
    """Reads manifests once, shards as they are needed."""

    def __init__(self, store: Store) -> None:
        self.store, self.reader = store, Reader(store)
        self._manifests: dict[str, list[Manifest]] = {}
        self._tables: dict[tuple[str, tuple[str, ...]], pa.Table] = {}
        self._files = _source_files(store)

    # --- backward ---

    def backward(self, prefix: str) -> list[Node]:
        """From a generation: its contexts in the order fed, its prompt, its checkpoint."""
        found: dict[str, tuple[Manifest, dict[str, Any]]] = {}
        for manifest in self._of("generations"):
            for row in self._rows(manifest, "generation_id", prefix, without=("image",)):
                found.setdefault(row["generation_id"], (manifest, row))
        return [self._generation(manifest, row) for manifest, row in found.values()]

    def _generation(self, manifest: Manifest, row: dict[str, Any]) -> Node:
        documents = self._above(manifest, "documents")
        below = []
        if row["prompt_id"] is not None:
            below.append(self._document("prompt", row["prompt_id"], documents))
        for place, name in enumerate(row["contexts"], start=1):
            below.append(self._document(f"context {place}", name, documents))
        checkpoint = find_manifest(self.store, "generator", row["generator"])
        if checkpoint is not None:
            below.append(self._checkpoint(checkpoint))
        facts = {name: row[name] for name in ("model", "task", "memory", "k", "seed", "sampler")}
        facts |= {"prompt": row["prompt"], "caption": row["caption"]}
        facts |= {"artifact": manifest.artifact_id, "run": manifest.run_id}
        return Node(what="generation", id=row["generation_id"], facts=facts, leads_to=tuple(below))

    def _checkpoint(self, manifest: Manifest) -> Node:
        facts = {"run": manifest.run_id, "recipe": f"_runs/{manifest.run_id}/config.json"}
        facts |= {"created": manifest.created_at} | dict(manifest.facts)
        return Node(
            what="checkpoint",
            id=manifest.artifact_id,
            facts=facts,
            leads_to=tuple(
                Node(
                    what=one.name,
                    id=one.artifact_id,
                    facts={"kind": one.kind, "content_digest": one.content_digest},
                )
                for one in manifest.inputs
            ),
        )

    def _document(self, what: str, name: str, documents: Sequence[Manifest]) -> Node:
        """A document and the rows it was made of, copies included."""
        rows: dict[str, Node] = {}
        facts: dict[str, Any] = {}
        for manifest in documents:
            columns = ("row_id", "document_id", "source", "role", "set", "caption", "outcome")
            for row in self._rows(manifest, "document_id", name, only=columns):
                if row["outcome"] == KEPT:
                    facts = {k: row[k] for k in ("source", "role", "set", "caption")}
                rows.setdefault(row["row_id"], self._row(manifest, row))
        return Node(what=what, id=name, facts=facts, leads_to=tuple(rows.values()))

    def _row(self, documents: Manifest, row: dict[str, Any]) -> Node:
        """Where a row came from: link, file, line, digest of the bytes received."""
        facts: dict[str, Any] = {"outcome": row["outcome"]}
        for manifest in self._above(documents, "source_rows"):
            for source in self._rows(manifest, "row_id", row["row_id"]):
                facts |= self._place(source)
        for manifest in self._above(documents, "images"):
            columns = ("row_id", "raw_sha256", "final_url", "fetched_at", "http_status")
            for image in self._rows(manifest, "row_id", row["row_id"], only=columns):
                facts |= {name: image[name] for name in columns[1:]}
        return Node(what="row", id=row["row_id"], facts=facts)

    def _place(self, source: dict[str, Any]) -> dict[str, Any]:
        return {
            "url": source["url"],
            "file": self._files.get(source["file_sha256"], "no longer in the ledger"),
            "file_sha256": source["file_sha256"],
            "row_index": source["row_index"],
            "source": source["source"],
        }

    # --- forward ---

    def forward(self, column: str, value: str) -> list[Node]:
        """From a link or a row: every stage it passed, or where it stopped and why."""
        found: dict[str, Node] = {}
        for manifest in self._of("source_rows"):
            for row in self._rows(manifest, column, value):
                if row["row_id"] not in found:
                    found[row["row_id"]] = self._journey(row)
        return list(found.values())

    def _journey(self, row: dict[str, Any]) -> Node:
        name = row["row_id"]
        facts = self._place(row) | {
            "caption": row["caption"],
            "role": row["role"],
            "outcome": row["outcome"],
        }
        if row["outcome"] != KEPT:
            facts |= {"stopped_at": "ingest_metadata"}
            return Node(what="row", id=name, facts=facts)
        below: list[Node] = []
        for kind, columns in _STATIONS.items():
            for manifest in self._of(kind):
                for found in self._rows(manifest, "row_id", name, only=columns):
                    below.append(self._station(manifest, kind, found))
        return Node(what="row", id=name, facts=facts, leads_to=tuple(below))

    def _station(self, manifest: Manifest, kind: str, row: dict[str, Any]) -> Node:
        facts = {key: value for key, value in row.items() if key != "row_id" and value is not None}
        facts |= {"artifact": manifest.artifact_id}
        if row["outcome"] != KEPT:
            facts |= {"stopped_at": manifest.stage}
        document = row.get("document_id")
        used = kind == "documents" and row["outcome"] == KEPT
        return Node(
            what=kind,
            id=document or row["row_id"],
            facts=facts,
            leads_to=tuple(self._uses(document, manifest)) if used and document else (),
        )

    def _uses(self, document: str, documents: Manifest) -> Iterator[Node]:
        """Memories that hold a document, and what was generated with or from it."""
        for manifest in self._of("memory"):
            for row in self._rows(manifest, "document_id", document):
                facts = {"position": row["position"], "role": row["role"]}
                yield Node(what="memory", id=manifest.artifact_id, facts=facts)
        columns = ("generation_id", "model", "task", "memory", "prompt_id", "contexts")
        for manifest in self._of("generations"):
            if documents not in self._above(manifest, "documents"):
                continue
            for table in self._tables_of(manifest, columns):
                for row in table.to_pylist():
                    fed = document in row["contexts"]
                    if fed or row["prompt_id"] == document:
                        facts = {key: row[key] for key in ("model", "task", "memory")}
                        facts |= {"as": "context" if fed else "prompt"}
                        yield Node(what="generation", id=row["generation_id"], facts=facts)

    def of_document(self, prefix: str) -> list[Node]:
        """From a document: its rows, and from each the way forward."""
        columns = ("row_id", "document_id")
        rows = {
            row["row_id"]
            for manifest in self._of("documents")
            for row in self._rows(manifest, "document_id", prefix, only=columns)
        }
        return [node for name in sorted(rows) for node in self.forward("row_id", name)]

    def of_artifact(self, prefix: str) -> list[Node]:
        """From an artifact: what it was made of, down to the sources."""
        found = [m for m in manifests(self.store) if m.artifact_id.startswith(prefix)]
        return [self._artifact(manifest) for manifest in found]

    def _artifact(self, manifest: Manifest, name: str = "artifact") -> Node:
        below = []
        for one in manifest.inputs:
            above = find_manifest(self.store, one.kind, one.artifact_id)
            if above is not None:
                below.append(self._artifact(above, one.name))
        facts = {"kind": manifest.kind, "rows": manifest.rows_out, "run": manifest.run_id}
        return Node(what=name, id=manifest.artifact_id, facts=facts, leads_to=tuple(below))

    # --- reading ---

    def _of(self, kind: str) -> list[Manifest]:
        if kind not in self._manifests:
            self._manifests[kind] = manifests(self.store, kind)
        return self._manifests[kind]

    def _above(self, manifest: Manifest, kind: str) -> list[Manifest]:
        """Artifacts of a kind that an artifact was made of, at any distance."""
        found: dict[str, Manifest] = {}
        seen, waiting = set[str](), [manifest]
        while waiting:
            for one in waiting.pop().inputs:
                if one.artifact_id in seen:
                    continue
                seen.add(one.artifact_id)
                above = find_manifest(self.store, one.kind, one.artifact_id)
                if above is None:
                    continue
                if above.kind == kind:
                    found[above.artifact_id] = above
                else:
                    waiting.append(above)
        return list(found.values())

    def _rows(
        self,
        manifest: Manifest,
        column: str,
        value: str,
        *,
        only: Sequence[str] | None = None,
        without: Sequence[str] = (),
    ) -> Iterator[dict[str, Any]]:
        """Rows whose column is (an id: starts with) the value."""
        for table in self._tables_of(manifest, only, without):
            held = table.column(column)
            hits = pc.equal(held, value) if column == "url" else pc.starts_with(held, value)
            yield from table.filter(pc.fill_null(hits, False)).to_pylist()

    def _tables_of(
        self,
        manifest: Manifest,
        only: Sequence[str] | None = None,
        without: Sequence[str] = (),
    ) -> Iterator[pa.Table]:
        for shard in _main_tables(manifest):
            key = (shard.path, (*(only or ("all",)), *without))
            if key not in self._tables:
                table = self.reader.table(shard, None if only is None else list(only))
                self._tables[key] = table.drop_columns(list(without)) if without else table
            yield self._tables[key]


_STATIONS: dict[str, tuple[str, ...]] = {
    "images": ("row_id", "outcome", "error", "http_status", "raw_sha256"),
    "normalized_images": ("row_id", "outcome", "error", "width", "height"),
    "documents": ("row_id", "outcome", "document_id", "duplicate_of"),
}


def _main_tables(manifest: Manifest) -> tuple[Shard, ...]:
    return manifest.tables(manifest.kind)


def _source_files(store: Store) -> dict[str, str]:
    """Where each source file was last seen, by digest."""
    names: Iterable[str] = {key.split("/")[1] for key in store.list("_sources")}
    return {entry.sha256: entry.path for name in names for entry in read_ledger(store, name)}
