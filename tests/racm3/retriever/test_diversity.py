"""What near copies are compared with, and how far a ranking is walked."""

from __future__ import annotations

import numpy as np
import pytest

from racm3.retriever import (
    ExactIndex,
    MainDocument,
    Memory,
    Retriever,
    SelectionConfig,
    SkipReason,
    order_hits,
    select_contexts,
)


def unit_rows(rng, count, dim=3):
    rows = rng.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def walk(memory, ranking, main, **changes):
    return select_contexts(ranking, memory, SelectionConfig(max_contexts=4, **changes), main)


def test_near_copies_are_judged_of_what_the_switch_names():
    rng = np.random.default_rng(11)
    fired = dict.fromkeys(("any", "document", "context"), 0)
    for _ in range(400):
        memory = Memory(
            document_ids=tuple(f"d{i:02d}" for i in range(25)), vectors=unit_rows(rng, 25)
        )
        main = MainDocument(document_id="d00", vector=memory.vectors[0])
        ranking = order_hits(memory.vectors @ unit_rows(rng, 1)[0], np.arange(25), memory)
        for of in fired:
            got = walk(memory, ranking, main, near_copy=0.8, near_copy_of=of)
            reasons = {skip.reason for skip in got.skipped}
            fired[of] += len(got.skipped)
            assert (SkipReason.NEAR_COPY_OF_DOCUMENT not in reasons) or of != "context"
            assert (SkipReason.NEAR_COPY_OF_CONTEXT not in reasons) or of != "document"
            chosen = [hit.position for hit in got.contexts]
            for i, position in enumerate(chosen):
                near_main = memory.vectors[position] @ main.vector > 0.8
                near_other = any(
                    memory.vectors[position] @ memory.vectors[j] > 0.8 for j in chosen[:i]
                )
                assert not (near_main and of != "context")
                assert not (near_other and of != "document")
        # turned to contexts alone, training selects what a prompt of the same vector would
        told = walk(memory, ranking, main, near_copy=0.8, near_copy_of="context")
        asked = walk(
            memory, [r for r in ranking if r[1] != 0], None, near_copy=0.8, near_copy_of="context"
        )
        assert [h.document_id for h in told.contexts] == [h.document_id for h in asked.contexts]
    assert fired["any"] > max(fired["document"], fired["context"]) > 0


def test_contexts_alone_need_nothing_of_the_main_document():
    memory = Memory(document_ids=("a", "b"), vectors=np.eye(2, dtype=np.float32))
    config = SelectionConfig(near_copy_of="context")
    got = select_contexts([(1.0, 0), (0.5, 1)], memory, config, MainDocument(document_id="a"))
    assert [hit.document_id for hit in got.contexts] == ["b"]
    with pytest.raises(ValueError, match="has none"):
        select_contexts([(1.0, 0)], memory, SelectionConfig(), MainDocument(document_id="z"))


def test_a_ranking_is_read_as_far_as_needed():
    memory = Memory(document_ids=("a", "b", "c"), vectors=np.eye(3, dtype=np.float32))
    read = []

    def ranking():
        for position in range(3):
            read.append(position)
            yield 1.0 - position / 4, position

    got = select_contexts(ranking(), memory, SelectionConfig(max_contexts=1))
    assert [hit.document_id for hit in got.contexts] == ["a"]
    assert len(read) <= 2


def test_every_walked_document_is_accounted_for():
    rng = np.random.default_rng(5)
    for _ in range(300):
        memory = Memory(
            document_ids=tuple(f"d{i:02d}" for i in range(12)),
            vectors=unit_rows(rng, 12),
            sources=tuple("ab"[i % 2] for i in range(12)),
        )
        ranking = order_hits(memory.vectors @ unit_rows(rng, 1)[0], np.arange(12), memory)
        main = MainDocument(document_id="d05", vector=memory.vectors[5])
        k, floor = int(rng.integers(0, 5)), [None, 0.0][rng.integers(2)]
        config = SelectionConfig(
            max_contexts=k,
            near_copy=[None, 0.7][rng.integers(2)],
            near_copy_of=("any", "document", "context")[rng.integers(3)],
            max_per_source=[None, 1][rng.integers(2)],
            floor=floor,
        )
        got = select_contexts(ranking, memory, config, main)
        walked = sorted([*got.contexts, *got.skipped], key=lambda hit: hit.rank)
        assert [(hit.rank, hit.document_id, hit.score) for hit in walked] == [
            (rank, memory.document_ids[position], score)
            for rank, (score, position) in enumerate(ranking[: len(walked)])
        ]


class CountingIndex(ExactIndex):
    """Notes how many hits were asked for."""

    def __init__(self, vectors):
        super().__init__(vectors)
        self.asked = []

    def search(self, queries, k):
        self.asked.append(k)
        return super().search(queries, k)


@pytest.mark.parametrize("most", [1, 7, 32, 100, 500])
def test_no_query_walks_further_than_the_limit(most):
    """One source for all and one context a source: nobody ever gets two."""
    vectors = unit_rows(np.random.default_rng(3), 300)
    names = tuple(f"d{i:03d}" for i in range(300))
    memory = Memory(document_ids=names, vectors=vectors, sources=("web",) * 300)
    config = SelectionConfig(max_contexts=2, near_copy=None, max_per_source=1)
    index = CountingIndex(vectors)
    retriever = Retriever(memory, index, config, first_candidates=min(2, most), max_candidates=most)
    found = retriever.retrieve(vectors[:4])
    assert max(index.asked) == min(most, 300)
    assert found.short == 4
    for i, selection in enumerate(found.selections):
        assert [hit.document_id for hit in selection.contexts] == [names[i]]
        assert len(selection.skipped) == min(most, 300) - 1
    with pytest.raises(ValueError, match="at most max_candidates"):
        Retriever(memory, index, config, first_candidates=3, max_candidates=2)
