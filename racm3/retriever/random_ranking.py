"""Random contexts: what retrieval is worth shows beside documents that nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from racm3.encoder.base import Vectors
from racm3.retriever.memory import Memory
from racm3.retriever.retriever import Retrieved
from racm3.retriever.selection import MainDocument, SelectionConfig, select_contexts


class RandomRetriever:
    """Answers as `Retriever` does, but walks the memory in random order.

    All rules of the selection hold except the floor: nobody expects these to be relevant. A walk
    costs what it walks, whatever the memory holds.
    """

    def __init__(self, memory: Memory, config: SelectionConfig) -> None:
        self._memory, self._config = memory, replace(config, floor=None)

    def retrieve(
        self,
        queries: Vectors,
        mains: Sequence[MainDocument | None],
        generators: Sequence[np.random.Generator],
    ) -> Retrieved:
        """Contexts for each row of [B, d].

        Args:
            queries: Unit vectors; they only score what was drawn.
            mains: The asking document of each row, or None.
            generators: One a row, keyed by what asks.

        Raises:
            ValueError: The three differ in length, or a rule lacks a column.
        """
        rows = zip(queries, mains, generators, strict=True)
        return Retrieved.of(
            [
                select_contexts(self._ranking(query, rng), self._memory, self._config, main)
                for query, main, rng in rows
            ],
            self._config,
        )

    def _ranking(
        self, query: Vectors, generator: np.random.Generator
    ) -> Iterator[tuple[float, int]]:
        for position in random_order(len(self._memory), generator):
            yield float(self._memory.vectors[position] @ query), position


def random_order(count: int, generator: np.random.Generator) -> Iterator[int]:
    """0..count-1 in random order, each order as likely; the first n cost n steps, not `count`.

    Fisher and Yates' shuffle that remembers only what it moved.
    """
    moved: dict[int, int] = {}
    for place in range(count):
        other = int(generator.integers(place, count))
        yield moved.get(other, other)
        moved[other] = moved.pop(place, place)
