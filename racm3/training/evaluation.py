"""The batches that perplexities are measured on: one document a row, nothing drawn."""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import replace
from typing import Literal

import numpy as np

from racm3.document import DocumentTokens
from racm3.objective.masking import mask, to_row
from racm3.objective.spans import Span
from racm3.sequence.batch import Batch, Modality
from racm3.sequence.layout import Layout, lay_out
from racm3.sequence.order import ContextOrder, context_order
from racm3.training.draws import Query
from racm3.training.examples import Example

__all__ = ["Task", "evaluation_batch"]

Task = Literal["image", "caption"]


def evaluation_batch(
    examples: Series[Example],
    *,
    layout: Layout,
    task: Task,
    k: int,
    contexts: Series[Series[DocumentTokens]] | None = None,
    order: ContextOrder = "best_first",
    seed: int = 0,
) -> Batch:
    """What perplexities are measured on: weight 1 on the measured tokens, 0 on all others.

    `image`: the main document's image codes, in causal order, given contexts and caption; contexts
    as retrieved by the caption. `caption`: the caption's tokens (not `<eoss>`), infilled from the
    tail, given contexts and image; contexts as retrieved by the image. Never by the whole document,
    which would leak, and of several draws of a query the one of the lowest number.

    Args:
        examples: one a row.
        layout: how they are laid out.
        task: what is measured.
        k: most contexts; an example with fewer, or without the query, gets what it has.
        contexts: instead of the retrieved ones (wrong ones, say), ranked, one list an example.
        order: of the contexts.
        seed: of `shuffled` contexts, drawn by document whatever the batch.

    Raises:
        ValueError: when `contexts` has another length than `examples`.
    """
    from racm3.retriever.query import document_generator

    if contexts is None:
        contexts = [
            _retrieved(example, "text" if task == "image" else "image") for example in examples
        ]
    measured = Modality.IMAGE if task == "image" else Modality.TEXT
    rows = []
    for example, ranked in zip(examples, contexts, strict=True):
        shuffle = document_generator(seed, example.document_id)
        ranks = context_order(len(ranked[:k]), order, shuffle)
        sequence = lay_out(example.main, [ranked[i] for i in ranks], layout)
        caption = sequence.main_segments[0]
        hidden = task == "caption" and caption.stop > caption.start
        spans = (Span(caption.start, caption.stop),) if hidden else ()
        row = to_row(sequence, mask(sequence, spans, layout.vocabulary), layout, alpha=0)
        weights = (row.is_main & (row.modality == measured)).astype(np.float32)
        rows.append(replace(row, weights=weights))
    return Batch.of_rows(rows, pad_id=layout.vocabulary.pad_id)


def _retrieved(example: Example, query: Query) -> tuple[DocumentTokens, ...]:
    candidates = [q for q in example.queries if q.query == query]
    return min(candidates, key=lambda q: q.draw).contexts if candidates else ()
