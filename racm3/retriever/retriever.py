"""The retriever: queries in, contexts out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from racm3.encoder.base import Vectors
from racm3.retriever.index import Hits, SearchIndex
from racm3.retriever.memory import Memory
from racm3.retriever.selection import (
    MainDocument,
    Selection,
    SelectionConfig,
    SkipReason,
    count_reasons,
    order_hits,
    select_contexts,
)

MAX_CANDIDATES = 4096
"""Hits that a walk is worth; a query that finds no context among them goes without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieved:
    """The selections of a batch of queries, in order, and how often each rule fired."""

    selections: tuple[Selection, ...]
    counts: dict[SkipReason, int]
    short: int
    """Queries that got fewer than K contexts."""

    @classmethod
    def of(cls, selections: Sequence[Selection], config: SelectionConfig) -> Retrieved:
        """Counts what a batch came to."""
        return cls(
            selections=tuple(selections),
            counts=count_reasons(selections),
            short=sum(len(one.contexts) < config.max_contexts for one in selections),
        )


class Retriever:
    """Search, exact scores, selection.

    It asks the index for few candidates first and for four times as many for the queries that
    still lack contexts, until K are chosen, the memory is exhausted or the limit is reached. So no
    document among the `max_candidates` best is missed because too few were asked for, however many
    are skipped; and no query walks a whole memory, however few may be chosen.
    """

    def __init__(
        self,
        memory: Memory,
        index: SearchIndex,
        config: SelectionConfig,
        *,
        first_candidates: int = 32,
        max_candidates: int = MAX_CANDIDATES,
        rescore: bool = True,
    ) -> None:
        """Takes the parts.

        Args:
            memory: Ids and vectors by position.
            index: Over `memory.vectors`, in the same order.
            config: The selection.
            first_candidates: Hits asked for at first.
            max_candidates: Most hits asked for.
            rescore: Score candidates afresh with the memory's own vectors, so that an approximate
                index only decides who is a candidate.

        Raises:
            ValueError: The index holds another number of vectors.
        """
        if index.size != len(memory):
            raise ValueError(
                f"The index holds {index.size} vectors, the memory {len(memory)} documents: "
                "they belong to different artifacts."
            )
        if not 1 <= first_candidates <= max_candidates:
            raise ValueError(
                f"first_candidates is {first_candidates}: it must be at least 1 and at most "
                f"max_candidates ({max_candidates})."
            )
        self._memory, self._index, self._config = memory, index, config
        self._first, self._most, self._rescore = first_candidates, max_candidates, rescore

    def retrieve(
        self, queries: Vectors, mains: Sequence[MainDocument | None] | None = None
    ) -> Retrieved:
        """Contexts for each row of [B, d].

        Args:
            queries: Unit vectors of captions or images.
            mains: The asking document of each row; None (each, or all) at inference.

        Raises:
            ValueError: `mains` has another length, or a rule lacks a column.
        """
        known = [None] * len(queries) if mains is None else list(mains)
        if len(known) != len(queries):
            raise ValueError(f"{len(queries)} queries, {len(known)} main documents: match them.")
        chosen: dict[int, Selection] = {}
        most = min(self._most, len(self._memory))
        open_rows, k = list(range(len(queries))), min(self._first, most)
        while open_rows and k:
            attempts = self._attempt(queries[open_rows], known, open_rows, k)
            chosen |= {row: found for row, (found, _) in zip(open_rows, attempts, strict=True)}
            if k == most:
                break
            open_rows = [
                row for row, (_, sure) in zip(open_rows, attempts, strict=True) if not sure
            ]
            k = min(4 * k, most)
        empty = Selection(contexts=(), skipped=())
        return Retrieved.of([chosen.get(row, empty) for row in range(len(queries))], self._config)

    def _end(self, selection: Selection) -> float | None:
        """Score at which the walk ended: of the K-th context, or of the first below the floor."""
        last = selection.skipped[-1:]
        if last and last[0].reason is SkipReason.BELOW_FLOOR:
            return last[0].score
        if len(selection.contexts) < self._config.max_contexts:
            return None
        return selection.contexts[-1].score if selection.contexts else math.inf

    def _attempt(
        self, queries: Vectors, mains: Sequence[MainDocument | None], rows: Sequence[int], k: int
    ) -> list[tuple[Selection, bool]]:
        """Selections, and whether more candidates could not change them (ties at the end could)."""
        scores, positions = self._candidates(queries, k)
        attempts = []
        for i, row in enumerate(rows):
            ranking = order_hits(scores[i], positions[i], self._memory)
            found = select_contexts(ranking, self._memory, self._config, mains[row])
            ended = self._end(found)
            attempts.append((found, ended is not None and ended > ranking[-1][0]))
        return attempts

    def _candidates(self, queries: Vectors, k: int) -> Hits:
        scores, positions = self._index.search(queries, k)
        if not self._rescore:
            return scores, positions
        vectors = self._memory.vectors[np.maximum(positions, 0)]
        exact = np.einsum("bkd,bd->bk", vectors, queries, dtype=np.float32)
        return np.where(positions < 0, -np.inf, exact).astype(np.float32), positions
