from __future__ import annotations

import numpy as np
import pytest

from racm3.retriever import (
    ExactIndex,
    MainDocument,
    Memory,
    Retriever,
    SelectionConfig,
    count_reasons,
)


def unit_rows(rng, count, dim=4):
    rows = rng.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_retriever_equals_walking_the_whole_ranking():
    rng = np.random.default_rng(5)
    vectors = unit_rows(rng, 60)
    vectors[30:40] = vectors[30]  # ties
    memory = Memory(document_ids=tuple(f"d{i}" for i in rng.permutation(60)), vectors=vectors)
    queries = np.concatenate([unit_rows(rng, 8), vectors[30:31]])
    config = SelectionConfig(max_contexts=3, near_copy=0.95)
    mains = [None if i % 2 else MainDocument(document_id="d1", vector=vectors[1]) for i in range(9)]
    small = Retriever(memory, ExactIndex(vectors), config, first_candidates=2)
    got = small.retrieve(queries, mains)
    whole = Retriever(memory, ExactIndex(vectors), config, first_candidates=60)
    expected = whole.retrieve(queries, mains)
    assert got.counts == expected.counts == count_reasons(got.selections)
    assert [s.contexts for s in got.selections] == [s.contexts for s in expected.selections]
    assert [s.skipped for s in got.selections] == [s.skipped for s in expected.selections]
    assert got.short == 0
    alone = small.retrieve(queries[3:4], mains[3:4]).selections[0]
    assert alone == got.selections[3]


def test_retriever_counts_queries_that_stay_short_and_refuses_a_foreign_index():
    vectors = np.eye(3, dtype=np.float32)
    memory = Memory(document_ids=("a", "b", "c"), vectors=vectors)
    config = SelectionConfig(max_contexts=5)
    found = Retriever(memory, ExactIndex(vectors), config).retrieve(vectors[:1])
    assert found.short == 1
    assert len(found.selections[0].contexts) == 3
    with pytest.raises(ValueError, match="different artifacts"):
        Retriever(memory, ExactIndex(vectors[:2]), config)
