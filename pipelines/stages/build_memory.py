"""Builds the memory: vectors by position, the documents they stand for, and a faiss index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipelines.errors import PipelineError, UsageError
from pipelines.index_builder import build_index
from pipelines.records import DOCUMENT_VECTORS, IMAGE_VECTORS, INDEX, vector_matrix
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.stage import FitOutput, FitStage, Inputs, StageConfig, Workspace
from storage_schemas.fingerprint import sha256_bytes
from storage_schemas.tables import TABLES

__all__ = ["BuildMemory", "Config"]

_ROLES = {"train", "memory"}
_TIMEOUT_SECONDS = 6 * 3600.0
_TIE = 1e-6
"""Scores closer than this are equal: which of two such documents is found does not matter."""


class Config(StageConfig):
    """Which index, and how it is measured."""

    index_key: str | None = Field(
        "Flat", description="faiss factory key; none: autofaiss chooses one"
    )
    index_param: str | None = Field(
        None,
        description="faiss search parameters, such as nprobe=64; none: autofaiss tunes them by "
        "timing searches, so give them where bytes must be equal on every machine",
    )
    max_index_memory: str = Field("16G", description="largest index, for autofaiss' choice")
    build_memory: str = Field(
        "32G", description="memory of the build, more than the index: bounds what k-means sees"
    )
    max_query_ms: float = Field(10.0, gt=0, description="slowest search, for autofaiss' choice")
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of the documents, drawn by the digest of seed and id: a smaller memory is "
        "part of every larger one",
    )
    seed: int = Field(0, ge=0, description="of the share")
    recall_queries: int = Field(
        500, ge=1, description="captions' vectors that recall is measured on"
    )


class BuildMemory(FitStage[Config]):
    """`memory` of the selected embeddings: roles train, or train and memory.

    Rows are ordered by document id, so that the content does not depend on the order of shards.
    A document vector is unit(unit(text) + unit(image)). A document that comes twice is held once.
    autofaiss runs in a child process, and its index is believed only after it was searched.
    """

    name = "build_memory"
    version = 1
    kind = "memory"
    config_type = Config

    def fit(
        self, config: Config, inputs: Inputs, reader: Reader, workspace: Workspace
    ) -> FitOutput:
        """Builds, checks and measures.

        Raises:
            UsageError: when no embedding is selected, or one of another role is.
            PipelineError: when autofaiss gives no index, or one that is not of these vectors.
        """
        held = _read(reader, inputs["embeddings"], config)
        count = len(held.ids)
        workspace.report(0, 3, f"{count} documents")
        vectors = workspace.staging / "vectors"
        vectors.mkdir(exist_ok=True)
        files = {
            DOCUMENT_VECTORS: vectors / DOCUMENT_VECTORS,
            IMAGE_VECTORS: workspace.staging / IMAGE_VECTORS,
            INDEX: workspace.staging / INDEX,
        }
        np.save(files[DOCUMENT_VECTORS], held.vectors, allow_pickle=False)
        np.save(files[IMAGE_VECTORS], held.images, allow_pickle=False)
        build_index(vectors, files[INDEX], _options(config), timeout_seconds=_TIMEOUT_SECONDS)
        workspace.report(1, 3, "index built, measuring recall")
        facts = _measure(files[INDEX], held, config)
        return FitOutput(
            files=files,
            tables={"memory": held.table()},
            rows_in=count + sum(held.dropped.values()),
            rows_out=count,
            dropped=held.dropped,
            facts=facts,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    """What the memory holds, by position."""

    ids: list[str]
    sources: list[str]
    roles: list[str]
    vectors: NDArray[np.float32]
    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    dropped: dict[str, int]
    """Rows that were selected and are not held, by reason."""

    def table(self) -> pa.Table:
        """The table `memory`."""
        return pa.table(
            {
                "position": pa.array(range(len(self.ids)), pa.int64()),
                "document_id": self.ids,
                "source": self.sources,
                "role": self.roles,
            },
            schema=TABLES["memory"].arrow,
        )


def _read(reader: Reader, selection: Selection, config: Config) -> _Held:
    from racm3.retriever.memory import document_vectors

    shards = sorted(selection.tables("embeddings"), key=lambda s: s.tags.get("order", ""))
    wrong = sorted({shard.tags.get("role", "") for shard in shards} - _ROLES)
    if wrong:
        raise UsageError(
            f"build_memory: embeddings of role {', '.join(wrong)} are selected; a memory holds "
            "only train and memory, or evaluation would leak into it"
        )
    columns = ["document_id", "text_vector", "image_vector"]
    tables = [reader.table(shard, columns) for shard in shards]
    places = [
        (name, shard.tags["source"], shard.tags["role"])
        for shard, table in zip(shards, tables, strict=True)
        for name in table.column("document_id").to_pylist()
    ]
    if not places:
        raise UsageError("build_memory: no document is selected; check the roles of the memory")
    whole = pa.concat_tables(tables)
    names = np.array([name for name, _, _ in places])
    _, first = np.unique(names, return_index=True)
    repeated = len(names) - len(first)
    first = np.array([i for i in first if _is_held(places[i][0], config)], dtype=np.int64)
    if not len(first):
        raise UsageError(
            f"build_memory: a share of {config.share} of {len(names) - repeated} documents holds "
            "none; raise it"
        )
    left_out = len(names) - repeated - len(first)
    texts = vector_matrix(whole.column("text_vector"))[first]
    images = vector_matrix(whole.column("image_vector"))[first]
    return _Held(
        ids=[places[i][0] for i in first],
        sources=[places[i][1] for i in first],
        roles=[places[i][2] for i in first],
        vectors=document_vectors(texts, images),
        images=images,
        texts=texts,
        dropped={
            reason: count
            for reason, count in (("repeated_document", repeated), ("beyond_share", left_out))
            if count
        },
    )


def _is_held(document_id: str, config: Config) -> bool:
    """Whether the share holds a document: a matter of the document alone, whoever else is there."""
    digest = sha256_bytes(f"{config.seed} {document_id}".encode())
    return int(digest[:13], 16) < config.share * 16**13  # 52 bits: a float holds them exactly


def _options(config: Config) -> dict[str, Any]:
    return {
        "index_key": config.index_key,
        "index_param": config.index_param,
        "max_index_memory_usage": config.max_index_memory,
        "max_index_query_time_ms": config.max_query_ms,
        "current_memory_available": config.build_memory,
        "should_be_memory_mappable": True,
    }


def _measure(path: Path, held: _Held, config: Config) -> dict[str, Any]:
    """Recall@10 of caption queries against exact search, and whether positions are ours.

    Raises:
        PipelineError: when the index holds another number of vectors, or most documents do not
            find themselves.
    """
    import faiss

    from racm3.retriever.index import ExactIndex, FaissIndex

    faiss.omp_set_num_threads(1)
    raw = faiss.read_index(str(path))
    index, exact = FaissIndex(raw), ExactIndex(held.vectors)
    count = len(held.ids)
    if index.size != count or index.dim != held.vectors.shape[1]:
        raise PipelineError(
            f"build_memory: the index holds {index.size} vectors of length {index.dim}, the memory "
            f"{count} of {held.vectors.shape[1]}; run again"
        )
    sample = np.unique(np.linspace(0, count - 1, min(count, config.recall_queries)).astype(int))
    k = min(10, count)
    own = held.vectors[sample]
    found = np.where(_found(index.search(own, k)[1], held.vectors, own) > 1 - 1e-4, 1, 0).max(1)
    if found.mean() < 0.5:
        raise PipelineError(
            f"build_memory: only {found.mean():.0%} of the documents find themselves in the index; "
            "its positions are not those of the memory: choose another memory.index_key"
        )
    asked = held.texts[sample]
    least = exact.search(asked, k)[0][:, -1:]
    hits = _found(index.search(asked, k)[1], held.vectors, asked) >= least - _TIE
    return {
        "documents": count,
        "dim": int(held.vectors.shape[1]),
        "metric": "inner product",
        "index_key": config.index_key or "autofaiss",
        "index_type": type(faiss.downcast_index(raw)).__name__,
        "recall_at_10": round(float(hits.mean()), 6),
        "recall_queries": len(sample),
        "finds_itself": round(float(found.mean()), 6),
    }


def _found(
    positions: NDArray[np.int64], vectors: NDArray[np.float32], queries: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Exact scores [B, k] of what an index found; -1 where it found nothing."""
    scores = np.einsum("bkd,bd->bk", vectors[np.maximum(positions, 0)], queries, dtype=np.float64)
    return np.where(positions < 0, -1.0, scores)
