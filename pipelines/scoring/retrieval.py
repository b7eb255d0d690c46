"""Whether the retriever finds, for an evaluation document, another document of its concept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.records import KEPT, MEMORY_ROLES
from pipelines.scoring.board import Board, Place, Slice
from racm3.metrics.recall import recall_at_k
from racm3.training.draws import Query
from racm3.training.examples import Example

__all__ = ["RETRIEVER", "add_recall", "counterparts"]

RETRIEVER = "retriever"
"""Stands where a model's name stands."""
KS = (1, 2, 10)
"""Measured as far as so many contexts are stored (`retrieve.selection.max_contexts`)."""
_ASKED: dict[str, Query] = {"image": "text", "caption": "image"}
"""Task -> the side of the document that asks for its contexts."""


def counterparts(documents: pa.Table, concepts: Iterable[str]) -> Mapping[str, frozenset[str]]:
    """The documents of each concept that a memory may hold.

    Args:
        documents: Columns `document_id`, `concept`, `role` and `outcome`.
        concepts: Those that are asked for.
    """
    wanted = pc.is_in(documents["concept"], value_set=pa.array(sorted(set(concepts)), pa.string()))
    held = pc.is_in(documents["role"], value_set=pa.array(MEMORY_ROLES))
    kept = pc.equal(documents["outcome"], KEPT)
    found: dict[str, set[str]] = defaultdict(set)
    rows = documents.filter(pc.and_(pc.and_(wanted, held), kept))
    for row in rows.select(["document_id", "concept"]).to_pylist():
        found[row["concept"]].add(row["document_id"])
    return {concept: frozenset(ids) for concept, ids in found.items()}


def add_recall(
    board: Board,
    examples: Sequence[Example],
    places: Sequence[Place],
    slices: Sequence[Slice],
    of_concept: Mapping[str, frozenset[str]],
    *,
    memory: str,
) -> None:
    """Adds recall at 1, 2 and 10 of the contexts that each task is given.

    A memory that holds no counterpart finds none, and its rows say so. Documents that have no
    concept, or the only document of theirs, are left out and counted.

    Args:
        board: Filled.
        examples: Evaluation examples of one memory.
        places: Where each belongs.
        slices: Of the examples.
        of_concept: See `counterparts`.
        memory: Its name.
    """
    relevant = [of_concept.get(p.cluster, frozenset()) - {p.document_id} for p in places]
    for task, side in _ASKED.items():
        hits = [_whole_query(example, side) for example in examples]
        stored = max(map(len, hits), default=0)
        for where in slices:
            index = [i for i in where.index if relevant[i]]
            alone = sum(places[i].cluster == places[i].document_id for i in where.index)
            for k in KS if index else ():
                if k > stored:
                    continue
                score = recall_at_k([hits[i] for i in index], [relevant[i] for i in index], k)
                how = (
                    f"{score.protocol}, asked with the {'caption' if side == 'text' else 'image'}; "
                    f"left out: {alone} without a concept, "
                    f"{len(where.index) - len(index) - alone} alone with theirs"
                )
                board.add(
                    replace(score, protocol=how),
                    model=RETRIEVER,
                    task=task,
                    where=where,
                    k=stored,
                    memory=memory,
                )


def _whole_query(example: Example, side: Query) -> tuple[str, ...]:
    """What the side without dropout found, best first."""
    asked = [query for query in example.queries if query.query == side]
    return min(asked, key=lambda query: query.draw).document_ids if asked else ()
