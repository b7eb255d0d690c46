from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from racm3.retriever import (
    MainDocument,
    Memory,
    SelectionConfig,
    SkipReason,
    count_reasons,
    order_hits,
    select_contexts,
)


def unit_rows(rng, count, dim=4):
    rows = rng.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def ranked(memory, query):
    scores = memory.vectors @ query
    return order_hits(scores, np.arange(len(memory)), memory)


@dataclass(frozen=True)
class Asked:
    """A memory of 20 documents, some of them much alike, and what one of them asks of it."""

    memory: Memory
    config: SelectionConfig
    main: MainDocument
    ranking: list[tuple[float, int]]

    @property
    def got(self):
        return select_contexts(self.ranking, self.memory, self.config, self.main)

    @property
    def compared(self):
        """The vectors that the near-copy rule compares."""
        by_document = self.config.compare == "document"
        return self.memory.vectors if by_document else self.memory.image_vectors


def asked(rng):
    """Document 3 asks; every rule on or off, columns that no rule needs there or not."""
    centres, noise = rng.integers(0, 6, 20), 0.3 * unit_rows(rng, 20)
    vectors = unit_rows(rng, 6)[centres] + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    limit = rng.choice([1, 2, 20])
    memory = Memory(
        document_ids=tuple(f"d{i:02d}" for i in range(20)),
        vectors=vectors,
        image_vectors=unit_rows(rng, 20),
        sources=tuple("ab"[i % 2] for i in range(20)),
        content=tuple(str(i // 2) for i in range(20)) if rng.random() < 0.5 else None,
    )
    config = SelectionConfig(
        max_contexts=int(rng.integers(0, 5)),
        near_copy=0.9 if rng.random() < 0.7 else None,
        compare=str(rng.choice(["document", "image"])),
        max_per_source=int(limit) if limit < 20 else None,
        floor=0.2 if rng.random() < 0.3 else None,
    )
    main = MainDocument(
        document_id="d03",
        vector=vectors[3],
        image_vector=memory.image_vectors[3],
        content="1" if memory.content else None,
    )
    query = vectors[3] if rng.random() < 0.5 else unit_rows(rng, 1)[0]
    return Asked(memory, config, main, ranked(memory, query))


def test_a_walk_leaves_nothing_out(cases):
    for rng in cases:
        asking = asked(rng)
        got, k = asking.got, asking.config.max_contexts
        walked = sorted([*got.contexts, *got.skipped], key=lambda hit: hit.rank)
        assert [hit.rank for hit in walked] == list(range(len(walked)))
        names = [asking.memory.document_ids[p] for _, p in asking.ranking]
        assert [hit.document_id for hit in walked] == names[: len(walked)]
        scores = [score for score, _ in asking.ranking]
        assert scores == sorted(scores, reverse=True)
        floored = [skip.rank for skip in got.skipped if skip.reason is SkipReason.BELOW_FLOOR]
        assert len(got.contexts) == k or len(walked) == 20 or floored == [len(walked) - 1]


def test_no_document_is_its_own_context(cases):
    skipped = 0
    for rng in cases:
        got = asked(rng).got
        assert "d03" not in {hit.document_id for hit in got.contexts}
        itself = [skip for skip in got.skipped if skip.document_id == "d03"]
        assert all(skip.reason in (SkipReason.ITSELF, SkipReason.BELOW_FLOOR) for skip in itself)
        skipped += len(itself)
    assert skipped > 100


def test_no_context_is_a_near_copy_of_the_document_or_of_another(cases):
    fired = Counter()
    for rng in cases:
        asking = asked(rng)
        if asking.config.near_copy is None:
            continue
        vectors, got = asking.compared, asking.got
        chosen = [hit.position for hit in got.contexts]
        for i, position in enumerate(chosen):
            assert vectors[position] @ vectors[3] <= 0.9
            assert all(vectors[position] @ vectors[other] <= 0.9 for other in chosen[:i])
        fired.update(skip.reason for skip in got.skipped)
    assert fired[SkipReason.NEAR_COPY_OF_DOCUMENT] > 100
    assert fired[SkipReason.NEAR_COPY_OF_CONTEXT] > 100


def test_a_document_is_skipped_for_the_reason_given(cases):
    for rng in cases:
        asking = asked(rng)
        memory, config, vectors = asking.memory, asking.config, asking.compared
        got = asking.got
        for skip in got.skipped:
            position = int(skip.document_id[1:])
            before = [hit.position for hit in got.contexts if hit.rank < skip.rank]
            seen = [memory.content[p] for p in [3, *before]] if memory.content else []
            sources = [memory.sources[p] for p in before]
            holds = {
                SkipReason.ITSELF: position == 3,
                SkipReason.EXACT_COPY: bool(seen) and memory.content[position] in seen,
                SkipReason.NEAR_COPY_OF_DOCUMENT: vectors[position] @ vectors[3] > 0.9,
                SkipReason.NEAR_COPY_OF_CONTEXT: any(
                    vectors[position] @ vectors[other] > 0.9 for other in before
                ),
                SkipReason.SOURCE_LIMIT: config.max_per_source is not None
                and sources.count(memory.sources[position]) >= config.max_per_source,
                SkipReason.BELOW_FLOOR: config.floor is not None and skip.score < config.floor,
            }
            assert holds[skip.reason]


def test_floor_and_source_limit_hold(cases):
    for rng in cases:
        asking = asked(rng)
        config, chosen = asking.config, asking.got.contexts
        assert config.floor is None or all(hit.score >= config.floor for hit in chosen)
        if config.max_per_source is not None:
            sources = [asking.memory.sources[hit.position] for hit in chosen]
            assert all(sources.count(source) <= config.max_per_source for source in sources)


def test_each_reason_by_hand():
    vectors = np.array(
        [[1, 0], [1, 0], [0.99, 0.141], [0.8, 0.6], [0.78, 0.626], [0, 1]], np.float32
    )
    memory = Memory(
        document_ids=("self", "copy", "near", "kept", "near2", "far"),
        vectors=vectors,
        content=("x", "x", "n", "k", "m", "f"),
    )
    main = MainDocument(document_id="self", vector=vectors[0], content="x")
    config = SelectionConfig(max_contexts=2, floor=0.5)
    got = select_contexts(ranked(memory, vectors[0]), memory, config, main)
    assert [hit.document_id for hit in got.contexts] == ["kept"]
    skipped = {skip.document_id: skip.reason for skip in got.skipped}
    assert skipped == {
        "self": SkipReason.ITSELF,
        "copy": SkipReason.EXACT_COPY,
        "near": SkipReason.NEAR_COPY_OF_DOCUMENT,
        "near2": SkipReason.NEAR_COPY_OF_CONTEXT,
        "far": SkipReason.BELOW_FLOOR,
    }
    assert count_reasons([got])[SkipReason.SOURCE_LIMIT] == 0


def test_image_switch_keeps_the_other_drawing_of_one_caption():
    text, first, second = np.eye(3, dtype=np.float32)
    mixed = 0.8 * first + 0.6 * second
    doc = [(text + image) / np.linalg.norm(text + image) for image in (first, mixed)]
    memory = Memory(
        document_ids=("a", "b"), vectors=np.stack(doc), image_vectors=np.stack([first, mixed])
    )
    main = MainDocument(document_id="a", vector=doc[0], image_vector=first)
    hits = ranked(memory, text)
    near = select_contexts(hits, memory, SelectionConfig(near_copy=0.89), main)
    kept = select_contexts(hits, memory, SelectionConfig(near_copy=0.89, compare="image"), main)
    assert near.contexts == ()
    assert [hit.document_id for hit in kept.contexts] == ["b"]


def test_rules_without_their_column_are_refused():
    memory = Memory(document_ids=("a",), vectors=np.ones((1, 1), np.float32))
    ranking = [(1.0, 0)]
    with pytest.raises(ValueError, match="sources"):
        select_contexts(ranking, memory, SelectionConfig(max_per_source=1))
    with pytest.raises(ValueError, match="image vectors"):
        select_contexts(ranking, memory, SelectionConfig(compare="image"))
    with pytest.raises(ValueError, match="has none"):
        select_contexts(ranking, memory, SelectionConfig(), MainDocument(document_id="z"))
    with pytest.raises(ValueError, match="cosine"):
        SelectionConfig(near_copy=1.5)
