"""What the memory says to a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.ask.artifacts import Artifacts
from pipelines.ask.given import Given, documents_by_id
from pipelines.records import INDEX, memory_of
from racm3.document import DocumentTokens

__all__ = ["FedContext", "contexts_for", "fed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FedContext:
    """A document that was put in front."""

    document_id: str | None
    """None: it is no document of the store."""
    caption: str
    source: str
    """Of the document; of a person's picture, what was given."""
    url: str | None
    score: float | None
    """Inner product with the query; None: somebody chose it."""
    sha256: str | None
    """Of a person's file."""
    tokens: DocumentTokens

    def facts(self) -> dict[str, Any]:
        """What is recorded of it."""
        facts = asdict(self)
        del facts["tokens"]
        return facts


def contexts_for(
    artifacts: Artifacts,
    *,
    k: int,
    caption: str | None = None,
    pixels: NDArray[np.uint8] | None = None,
    without: str | None = None,
) -> list[FedContext]:
    """At most k contexts, best first, by a caption or else by an image; none without a memory.

    Args:
        artifacts: that the memory is among.
        k: contexts at most.
        caption: the query.
        pixels: the query where there is no caption.
        without: document that is itself the prompt.
    """
    if artifacts.memory is None or not k:
        return []
    encoder = artifacts.encoder
    if caption is not None:
        vectors = encoder.encode_text([caption])
    else:
        assert pixels is not None
        vectors = encoder.encode_images([pixels])
    hits = _retriever(artifacts, k + 1).retrieve(vectors).selections[0].contexts
    chosen = [hit for hit in hits if hit.document_id != without][:k]
    rows = documents_by_id(artifacts, [hit.document_id for hit in chosen])
    return [_of_row(artifacts, rows[hit.document_id], float(hit.score)) for hit in chosen]


def fed(artifacts: Artifacts, given: Given) -> FedContext:
    """What somebody gave, as a context; a picture without a caption has an empty one."""
    if given.document_id is not None:
        row = documents_by_id(artifacts, [given.document_id])[given.document_id]
        return _of_row(artifacts, row, None)
    caption = given.caption or ""
    text = tuple(artifacts.text.encode(caption))
    return FedContext(
        document_id=None,
        caption=caption,
        source=given.name,
        url=None,
        score=None,
        sha256=given.sha256,
        tokens=DocumentTokens(text=text, image=given.codes).showing(artifacts.context_modality),
    )


def _retriever(artifacts: Artifacts, k: int) -> Any:
    """By the recipe's own rules, for k contexts."""
    from racm3.retriever.index import FaissIndex
    from racm3.retriever.retriever import Retriever
    from racm3.retriever.selection import SelectionConfig

    assert artifacts.memory is not None
    recipe = artifacts.ref("contexts.train").config
    files = artifacts.files(artifacts.memory)
    return Retriever(
        memory_of(artifacts.reader.tables(artifacts.memory.tables("memory")), files),
        FaissIndex.load(files[INDEX]),
        replace(SelectionConfig(**recipe["selection"]), max_contexts=k),
        first_candidates=min(recipe["first_candidates"], recipe["max_candidates"]),
        max_candidates=recipe["max_candidates"],
        rescore=recipe["rescore"],
    )


def _of_row(artifacts: Artifacts, row: Mapping[str, Any], score: float | None) -> FedContext:
    return FedContext(
        document_id=row["document_id"],
        caption=row["caption"],
        source=row["source"],
        url=row["url"],
        score=score,
        sha256=None,
        tokens=row["tokens"].showing(artifacts.context_modality),
    )
