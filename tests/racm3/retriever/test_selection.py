from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(0, 4),
    per_source=st.sampled_from([None, 1, 2]),
    floor=st.sampled_from([None, 0.2]),
    compare=st.sampled_from(["document", "image"]),
)
def test_walk_is_complete_ordered_and_lawful(seed, k, per_source, floor, compare):
    rng = np.random.default_rng(seed)
    vectors = unit_rows(rng, 20)
    memory = Memory(
        document_ids=tuple(f"d{i:02d}" for i in range(20)),
        vectors=vectors,
        image_vectors=unit_rows(rng, 20),
        sources=tuple("ab"[i % 2] for i in range(20)),
        content=tuple(str(i // 2) for i in range(20)),
    )
    config = SelectionConfig(
        max_contexts=k, max_per_source=per_source, floor=floor, compare=compare
    )
    main = MainDocument(
        document_id="d03", vector=vectors[3], image_vector=memory.image_vectors[3], content="1"
    )
    ranking = ranked(memory, unit_rows(rng, 1)[0])
    got = select_contexts(ranking, memory, config, main)
    walked = sorted([*got.contexts, *got.skipped], key=lambda hit: hit.rank)
    assert [hit.rank for hit in walked] == list(range(len(walked)))
    assert [hit.document_id for hit in walked] == [
        memory.document_ids[p] for _, p in ranking[: len(walked)]
    ]
    floored = [skip.rank for skip in got.skipped if skip.reason is SkipReason.BELOW_FLOOR]
    assert len(got.contexts) == k or len(walked) == 20 or floored == [len(walked) - 1]
    assert "d03" not in {hit.document_id for hit in got.contexts}
    compared = memory.vectors if compare == "document" else memory.image_vectors
    asked = main.vector if compare == "document" else main.image_vector
    chosen = [hit.position for hit in got.contexts]
    for i, position in enumerate(chosen):
        assert compared[position] @ asked <= 0.9
        assert all(compared[position] @ compared[other] <= 0.9 for other in chosen[:i])
        assert floor is None or got.contexts[i].score >= floor
    if per_source is not None:
        sources = [memory.sources[p] for p in chosen]
        assert all(sources.count(s) <= per_source for s in sources)


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
