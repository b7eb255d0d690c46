"""Examples: what a generator is trained on, and what is asked of it later."""

from __future__ import annotations

from dataclasses import dataclass

from racm3.document import DocumentTokens
from racm3.training.draws import Query

__all__ = ["Example", "QueryContexts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryContexts:
    """What one query of an example retrieved."""

    query: Query
    """Which part of the example was the query."""

    draw: int
    """Which draw of the dropped-word query; 0 where nothing was drawn."""

    document_ids: tuple[str, ...]
    """Ranked, best first; as long as `contexts`."""

    contexts: tuple[DocumentTokens, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A main document and its candidate contexts: one row the trainer reads."""

    example_id: str
    document_id: str
    main: DocumentTokens
    queries: tuple[QueryContexts, ...]
    """Empty for an example without contexts."""

    group: str | None = None
    """Group whose weight applies; None has weight 1."""

    category: str | None = None
    """Kind of thing it shows; None: none, and it is in no episode."""

    concept: str | None = None
    """What it shows: documents of one concept are in no episode together."""

    source: str | None = None
    """Where it comes from."""
