"""Maximum inner product search over a memory's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from racm3.encoder.base import Vectors

Hits = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and positions, [B, k] each, best first; position -1 (score -inf) where there are fewer."""


class SearchIndex(Protocol):
    """What finds the nearest positions."""

    @property
    def size(self) -> int:
        """Vectors held."""

    def search(self, queries: Vectors, k: int) -> Hits:
        """The k best of each query row, by inner product."""


class FaissIndex:
    """A faiss index of inner products, for example a file that autofaiss wrote.

    Approximate kinds return approximate scores; `Retriever` can score their candidates afresh.
    """

    def __init__(self, index: Any) -> None:
        import faiss

        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError("The index is not of inner products: build it with metric 'ip'.")
        self._index = index

    @classmethod
    def load(cls, path: Path, *, memory_map: bool = False) -> FaissIndex:
        """Reads a faiss file, or maps it.

        Raises:
            ValueError: The file is missing, is no faiss index, or has another metric.
        """
        import faiss

        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if memory_map else 0
        if not path.is_file():
            raise ValueError(f"The index file {path} does not exist: build the memory first.")
        try:
            index = faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise ValueError(f"{path} is no faiss index: build the memory again.") from error
        return cls(index)

    def save(self, path: Path) -> None:
        """Writes the index as one faiss file."""
        import faiss

        faiss.write_index(self._index, str(path))

    @property
    def size(self) -> int:
        """Vectors held."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    def search(self, queries: Vectors, k: int) -> Hits:
        """The k best of each row of [B, d].

        Raises:
            ValueError: Queries of another length, or k below 1.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"Queries are {queries.shape}: this index takes [B, {self.dim}].")
        if k < 1:
            raise ValueError(f"k is {k}: ask for at least one hit.")
        rows = np.ascontiguousarray(queries, dtype=np.float32)
        scores, positions = self._index.search(rows, k)
        return np.where(positions < 0, -np.inf, scores).astype(np.float32), positions


class ExactIndex(FaissIndex):
    """Every vector compared with every query (`faiss.IndexFlatIP`), as RA-CM3 does."""

    def __init__(self, vectors: Vectors) -> None:
        import faiss

        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        super().__init__(index)
