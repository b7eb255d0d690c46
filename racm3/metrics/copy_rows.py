"""The row that every table needs: what one gets by handing over the top document as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class _Ranked(Protocol):
    @property
    def document_id(self) -> str: ...


def copy_top(
    contexts: Sequence[Sequence[str | _Ranked]], values: dict[str, T]
) -> tuple[list[int], list[T]]:
    """Takes each query's best-ranked document's image (or codes, or caption) as its answer.

    Feed the answers to the same metric as the models' and compare on the same queries.

    Args:
        contexts: For each query its documents, best first: ids, or records with `document_id`.
        values: Document id -> what is copied.

    Returns:
        The queries (by index) that have a document at all, and their answers, in that order.

    Raises:
        KeyError: A retrieved document has no value.
    """
    queries: list[int] = []
    answers: list[T] = []
    for index, ranked in enumerate(contexts):
        if not ranked:
            continue
        top = ranked[0]
        document_id = top if isinstance(top, str) else top.document_id
        if document_id not in values:
            raise KeyError(f"copy_top: document {document_id} was retrieved but has no value.")
        queries.append(index)
        answers.append(values[document_id])
    return queries, answers
