"""The memory and what is fetched from it: relevance, modality, diversity."""

from racm3.retriever.index import ExactIndex, FaissIndex, SearchIndex
from racm3.retriever.memory import Memory, document_vectors
from racm3.retriever.query import (
    QUERY_DROPOUT,
    document_generator,
    drop_patches,
    dropped_image_queries,
    dropped_queries,
)
from racm3.retriever.random_ranking import RandomRetriever, random_order
from racm3.retriever.retriever import Retrieved, Retriever
from racm3.retriever.selection import (
    Hit,
    MainDocument,
    Selection,
    SelectionConfig,
    Skipped,
    SkipReason,
    count_reasons,
    order_hits,
    select_contexts,
)

__all__ = [
    "QUERY_DROPOUT",
    "ExactIndex",
    "FaissIndex",
    "Hit",
    "MainDocument",
    "Memory",
    "RandomRetriever",
    "Retrieved",
    "Retriever",
    "SearchIndex",
    "Selection",
    "SelectionConfig",
    "SkipReason",
    "Skipped",
    "count_reasons",
    "document_generator",
    "document_vectors",
    "drop_patches",
    "dropped_image_queries",
    "dropped_queries",
    "order_hits",
    "random_order",
    "select_contexts",
]
