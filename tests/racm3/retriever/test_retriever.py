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


@pytest.mark.parametrize("floor", [None, 0.3, 0.95])
def test_retriever_equals_walking_the_whole_ranking(floor):
    rng = np.random.default_rng(5)
    vectors = unit_rows(rng, 60)
    vectors[30:40] = vectors[30]  # ties
    memory = Memory(document_ids=tuple(f"d{i}" for i in rng.permutation(60)), vectors=vectors)
    queries = np.concatenate([unit_rows(rng, 8), vectors[30:31]])
    config = SelectionConfig(max_contexts=3, near_copy=0.95, floor=floor)
    mains = [None if i % 2 else MainDocument(document_id="d1", vector=vectors[1]) for i in range(9)]
    small = Retriever(memory, ExactIndex(vectors), config, first_candidates=2)
    got = small.retrieve(queries, mains)
    whole = Retriever(memory, ExactIndex(vectors), config, first_candidates=60)
    expected = whole.retrieve(queries, mains)
    assert got.counts == expected.counts == count_reasons(got.selections)
    assert [s.contexts for s in got.selections] == [s.contexts for s in expected.selections]
    assert [s.skipped for s in got.selections] == [s.skipped for s in expected.selections]
    assert (got.short == 0) == (floor != 0.95)
    alone = small.retrieve(queries[3:4], mains[3:4]).selections[0]
    assert alone == got.selections[3]


class CountingIndex(ExactIndex):
    asked = 0

    def search(self, queries, k):
        type(self).asked = max(self.asked, k)
        return super().search(queries, k)


def test_what_is_below_the_floor_is_not_searched_for():
    vectors = unit_rows(np.random.default_rng(1), 200)
    memory = Memory(document_ids=tuple(f"d{i:03d}" for i in range(200)), vectors=vectors)
    config = SelectionConfig(max_contexts=5, near_copy=None, floor=0.999)
    index = CountingIndex(vectors)
    found = Retriever(memory, index, config, first_candidates=10).retrieve(vectors[:3])
    assert index.asked == 10
    assert [len(selection.contexts) for selection in found.selections] == [1, 1, 1]


def test_retriever_counts_queries_that_stay_short_and_refuses_a_foreign_index():
    vectors = np.eye(3, dtype=np.float32)
    memory = Memory(document_ids=("a", "b", "c"), vectors=vectors)
    config = SelectionConfig(max_contexts=5)
    found = Retriever(memory, ExactIndex(vectors), config).retrieve(vectors[:1])
    assert found.short == 1
    assert len(found.selections[0].contexts) == 3
    with pytest.raises(ValueError, match="different artifacts"):
        Retriever(memory, ExactIndex(vectors[:2]), config)
