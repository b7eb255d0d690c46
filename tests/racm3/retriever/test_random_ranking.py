from __future__ import annotations

from collections import Counter
from itertools import islice, permutations

import numpy as np
import pytest

from racm3.retriever import (
    MainDocument,
    Memory,
    RandomRetriever,
    SelectionConfig,
    SkipReason,
    document_generator,
    random_order,
)


class Counted(np.random.Generator):
    """Counts the numbers drawn."""

    def __init__(self):
        super().__init__(np.random.PCG64(3))
        self.drawn = 0

    def integers(self, *args, **kwargs):
        self.drawn += 1
        return super().integers(*args, **kwargs)


def test_an_order_holds_every_place_once_and_every_order_is_as_likely():
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 5, 40):
        assert sorted(random_order(count, rng)) == list(range(count))
    seen = Counter(tuple(random_order(4, rng)) for _ in range(24_000))
    assert set(seen) == set(permutations(range(4)))
    assert max(abs(n - 1000) for n in seen.values()) < 150  # 5 standard deviations


def test_a_walk_costs_what_it_walks():
    rng = Counted()
    found = list(islice(random_order(10**12, rng), 50))
    assert rng.drawn == 50
    assert len(set(found)) == 50
    assert min(found) >= 0
    assert max(found) < 10**12


def unit_rows(rng, count, dim=6):
    rows = rng.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def memory():
    vectors = unit_rows(np.random.default_rng(1), 30)
    vectors[20:25] = vectors[20]
    return Memory(document_ids=tuple(f"d{i:02d}" for i in range(30)), vectors=vectors)


def test_the_rules_hold_and_the_floor_does_not(memory):
    rng = np.random.default_rng(2)
    config = SelectionConfig(max_contexts=3, floor=0.99)
    queries = unit_rows(rng, 300)
    names = [f"d{i % 30:02d}" for i in range(300)]
    mains = [MainDocument(document_id=n, vector=memory.vectors[int(n[1:])]) for n in names]
    generators = [document_generator(i, n) for i, n in enumerate(names)]
    found = RandomRetriever(memory, config).retrieve(queries, mains, generators)
    assert found.short == 0
    assert found.counts[SkipReason.BELOW_FLOOR] == 0
    assert found.counts[SkipReason.ITSELF] > 0
    assert found.counts[SkipReason.NEAR_COPY_OF_CONTEXT] > 0
    used = Counter()
    for query, main, selection in zip(queries, mains, found.selections, strict=True):
        ranks = [hit.rank for hit in (*selection.contexts, *selection.skipped)]
        assert sorted(ranks) == list(range(len(ranks)))
        for hit in selection.contexts:
            assert hit.document_id != main.document_id
            assert hit.score == pytest.approx(float(memory.vectors[hit.position] @ query))
        used.update(hit.document_id for hit in selection.contexts)
    assert set(used) == set(memory.document_ids)


def test_what_is_drawn_depends_on_the_key_alone(memory):
    config = SelectionConfig(max_contexts=2, near_copy=None)
    queries = unit_rows(np.random.default_rng(4), 3)
    retriever = RandomRetriever(memory, config)

    def drawn(rows, seed, *purpose):
        keys = [document_generator(seed, f"q{i}", *purpose) for i in rows]
        found = retriever.retrieve(queries[rows], [None] * len(rows), keys)
        return [tuple(hit.document_id for hit in one.contexts) for one in found.selections]

    together = drawn([0, 1, 2], 0)
    assert drawn([2, 0], 0) == [together[2], together[0]]
    assert drawn([0, 1, 2], 1) != together
    assert drawn([0, 1, 2], 0, 1) != together


def test_a_small_memory_gives_what_it_has(memory):
    two = Memory(document_ids=("a", "b"), vectors=memory.vectors[:2])
    config = SelectionConfig(max_contexts=5, near_copy=None)
    main = MainDocument(document_id="a", vector=two.vectors[0])
    found = RandomRetriever(two, config).retrieve(
        two.vectors[:1], [main], [np.random.default_rng(0)]
    )
    assert [hit.document_id for hit in found.selections[0].contexts] == ["b"]
    assert found.short == 1
