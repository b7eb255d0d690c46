"""Asks a memory on behalf of each document and chooses its contexts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipelines.records import INDEX, MEMORY_ROLES, memory_of, vector_matrix
from pipelines.runtime.reader import Reader
from pipelines.runtime.reader import Selection as Input
from pipelines.runtime.stage import (
    Inputs,
    ShardFunction,
    ShardOutput,
    ShardPlan,
    ShardStage,
    StageConfig,
)
from racm3.retriever.memory import document_vectors
from racm3.retriever.query import document_generator
from racm3.retriever.random_ranking import RandomRetriever
from racm3.retriever.retriever import MAX_CANDIDATES, Retrieved, Retriever
from racm3.retriever.selection import MainDocument, Selection, SelectionConfig
from storage_schemas.tables import TABLES

__all__ = ["Config", "RetrieveContexts"]

_BATCH = 64

Side = Literal["text", "image"]
_SIDES: tuple[Side, ...] = ("text", "image")


class Config(StageConfig):
    """How contexts are chosen."""

    selection: SelectionConfig = Field(
        default_factory=SelectionConfig, description="`max_contexts` is K at most"
    )
    first_candidates: int = Field(32, ge=1, description="hits asked of the index at first")
    max_candidates: int = Field(
        MAX_CANDIDATES, ge=1, description="most hits of a query: none walks the whole memory"
    )
    rescore: bool = Field(True, description="score candidates with the memory's own vectors")
    ranking: Literal["relevance", "random"] = Field(
        "relevance", description="random: documents of the memory that nobody asked for, no floor"
    )
    seed: int = Field(0, ge=0, description="of the random ranking")
    whole_queries: bool = Field(
        True,
        description="documents of the memory's own roles also ask without dropout; false: only "
        "where they have no draw with it, as in RA-CM3",
    )


class RetrieveContexts(ShardStage[Config]):
    """`contexts`: each document asks with its caption and its image, whole and in each draw.

    Validation and evaluation documents ask as a prompt would: with the whole caption (draw 0) or
    the image, and nothing else of them is known to the selection. Documents of the memory's own
    roles ask with their draws too, and are kept from themselves and, by `selection`, from near
    copies of themselves.
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
        ask = _asker(config, whole["memory"], reader)

        def run(plan: ShardPlan, reader: Reader) -> ShardOutput:
            table = reader.tables(plan.inputs["embeddings"])
            if plan.tags["role"] in MEMORY_ROLES:  # what it asks must not give itself back
                return _answer(ask, list(_known_queries(table, whole=config.whole_queries)))
            return _answer(ask, list(_prompts(table)))

        return run


@dataclass(frozen=True, kw_only=True, slots=True)
class _Query:
    """One question of one document."""

    document_id: str
    query: Side
    draw: int
    vector: NDArray[np.float32]
    main: MainDocument | None

    def chance(self, seed: int) -> np.random.Generator:
        """A generator of its own."""
        return document_generator(seed, self.document_id, _SIDES.index(self.query), self.draw)


_Ask = Callable[[Sequence[_Query]], Retrieved]


def _asker(config: Config, held: Input, reader: Reader) -> _Ask:
    """The memory, ready to be asked."""
    import faiss

    from racm3.retriever.index import FaissIndex

    faiss.omp_set_num_threads(1)
    files = reader.files(held)
    memory = memory_of(reader.tables(held.tables("memory")), files)
    if config.ranking == "random":
        drawn = RandomRetriever(memory, config.selection)
        return lambda asked: drawn.retrieve(
            *_asked(asked), [one.chance(config.seed) for one in asked]
        )
    retriever = Retriever(
        memory,
        FaissIndex.load(files[INDEX]),
        config.selection,
        first_candidates=min(config.first_candidates, config.max_candidates),
        max_candidates=config.max_candidates,
        rescore=config.rescore,
    )
    return lambda asked: retriever.retrieve(*_asked(asked))


def _asked(asking: Sequence[_Query]) -> tuple[NDArray[np.float32], list[MainDocument | None]]:
    return np.stack([one.vector for one in asking]), [one.main for one in asking]


def _prompts(table: pa.Table) -> Iterator[_Query]:
    """What a prompt would ask: the caption or the image of each document, as it is."""
    texts, images = _sides(table)
    for row, name in enumerate(table.column("document_id").to_pylist()):
        yield _Query(document_id=name, query="text", draw=0, vector=texts[row], main=None)
        yield _Query(document_id=name, query="image", draw=0, vector=images[row], main=None)


def _known_queries(table: pa.Table, *, whole: bool) -> Iterator[_Query]:
    """All questions of documents that the memory may hold, document by document."""
    texts, images = _sides(table)
    vectors = document_vectors(texts, images)
    drawn: dict[Side, tuple[NDArray[np.float32], list[Any]]] = {
        "text": (texts, table.column("query_vectors").to_pylist()),
        "image": (images, table.column("image_query_vectors").to_pylist()),
    }
    for row, name in enumerate(table.column("document_id").to_pylist()):
        main = MainDocument(document_id=name, vector=vectors[row], image_vector=images[row])
        for query, (sides, draws) in drawn.items():
            asked = [sides[row], *(np.asarray(draw, dtype=np.float32) for draw in draws[row])]
            first = 0 if whole or not draws[row] else 1
            for draw, vector in enumerate(asked[first:], first):
                yield _Query(document_id=name, query=query, draw=draw, vector=vector, main=main)


def _sides(table: pa.Table) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return vector_matrix(table.column("text_vector")), vector_matrix(table.column("image_vector"))


def _answer(ask: _Ask, asking: Sequence[_Query]) -> ShardOutput:
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for start in range(0, len(asking), _BATCH):
        part = asking[start : start + _BATCH]
        found = ask(part)
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
