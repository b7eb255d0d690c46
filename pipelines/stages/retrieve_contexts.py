"""Asks a memory on behalf of each document and chooses its contexts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipelines.records import INDEX, memory_of, vector_matrix
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import (
    Inputs,
    ShardFunction,
    ShardOutput,
    ShardPlan,
    ShardStage,
    StageConfig,
)
from racm3.retriever.memory import document_vectors
from racm3.retriever.retriever import Retriever
from racm3.retriever.selection import MainDocument, Selection, SelectionConfig
from storage_schemas.tables import TABLES

__all__ = ["Config", "RetrieveContexts"]

_IN_MEMORY = {"train", "memory"}
"""Roles whose documents the memory may hold: what they ask must not give them back."""
_BATCH = 64


class Config(StageConfig):
    """How contexts are chosen."""

    selection: SelectionConfig = Field(
        default_factory=SelectionConfig, description="`max_contexts` is K at most"
    )
    first_candidates: int = Field(32, ge=1, description="hits asked of the index at first")
    rescore: bool = Field(True, description="score candidates with the memory's own vectors")


class RetrieveContexts(ShardStage[Config]):
    """`contexts`: for each document its whole caption, each draw of it, and its image ask.

    Validation and evaluation documents ask as a prompt would: with the whole caption (draw 0) or
    the image, and nothing else of them is known to the selection. Documents of the memory's own
    roles are kept from themselves and, by `selection`, from near copies of themselves.
    """

    name = "retrieve_contexts"
    version = 1
    kind = "contexts"
    config_type = Config
    whole_inputs: ClassVar[tuple[str, ...]] = ("memory",)

    def plan(self, config: Config, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """One shard of embeddings each."""
        return [
            ShardPlan(inputs={"embeddings": (shard,)}, tags=dict(shard.tags))
            for shard in inputs["embeddings"].tables("embeddings")
        ]

    def build(self, config: Config, whole: Inputs, reader: Reader) -> ShardFunction:
        """Opens the memory once."""
        import faiss

        from racm3.retriever.index import FaissIndex

        faiss.omp_set_num_threads(1)
        files = reader.files(whole["memory"])
        memory = memory_of(reader.tables(whole["memory"].tables("memory")), files)
        retriever = Retriever(
            memory,
            FaissIndex.load(files[INDEX]),
            config.selection,
            first_candidates=config.first_candidates,
            rescore=config.rescore,
        )

        def run(plan: ShardPlan, reader: Reader) -> ShardOutput:
            table = reader.tables(plan.inputs["embeddings"])
            asking = list(_queries(table, known=plan.tags["role"] in _IN_MEMORY))
            return _answer(retriever, asking)

        return run


@dataclass(frozen=True, kw_only=True, slots=True)
class _Query:
    """One question of one document."""

    document_id: str
    query: Literal["text", "image"]
    draw: int
    vector: NDArray[np.float32]
    main: MainDocument | None


def _queries(table: pa.Table, *, known: bool) -> Iterator[_Query]:
    """All questions of a shard, document by document."""
    if not table.num_rows:
        return
    texts = vector_matrix(table.column("text_vector"))
    images = vector_matrix(table.column("image_vector"))
    vectors = document_vectors(texts, images)
    draws = table.column("query_vectors").to_pylist() if known else [[]] * table.num_rows
    for row, name in enumerate(table.column("document_id").to_pylist()):
        main = None
        if known:
            main = MainDocument(document_id=name, vector=vectors[row], image_vector=images[row])
        asked = [texts[row], *(np.asarray(draw, dtype=np.float32) for draw in draws[row])]
        for draw, vector in enumerate(asked):
            yield _Query(document_id=name, query="text", draw=draw, vector=vector, main=main)
        yield _Query(document_id=name, query="image", draw=0, vector=images[row], main=main)


def _answer(retriever: Retriever, asking: Sequence[_Query]) -> ShardOutput:
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for start in range(0, len(asking), _BATCH):
        part = asking[start : start + _BATCH]
        vectors = np.stack([one.vector for one in part])
        found = retriever.retrieve(vectors, [one.main for one in part])
        counts.update({f"skipped_{rule.value}": n for rule, n in found.counts.items() if n})
        counts["queries_short_of_contexts"] += found.short
        rows += [_row(one, chosen) for one, chosen in zip(part, found.selections, strict=True)]
    table = pa.Table.from_pylist(rows, schema=TABLES["contexts"].arrow)
    return ShardOutput(table=table, rows_in=len(asking), counts=dict(counts))


def _row(asked: _Query, chosen: Selection) -> dict[str, Any]:
    return {
        "document_id": asked.document_id,
        "query": asked.query,
        "draw": asked.draw,
        "context_ids": [hit.document_id for hit in chosen.contexts],
        "context_scores": [hit.score for hit in chosen.contexts],
        "context_ranks": [hit.rank for hit in chosen.contexts],
        "skipped_ids": [skip.document_id for skip in chosen.skipped],
        "skipped_reasons": [skip.reason.value for skip in chosen.skipped],
    }
