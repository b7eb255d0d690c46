from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from pipelines.runtime.reader import Selection
from pipelines.stages.retrieve_contexts import Config, RetrieveContexts
from racm3.retriever.memory import document_vectors
from racm3.retriever.selection import SelectionConfig


@pytest.fixture(scope="module")
def roles(shared, documents) -> dict[str, str]:
    return {row["document_id"]: row["role"] for row in shared.rows(documents)}


def test_every_document_asks_with_what_it_may(shared, roles, contexts):
    asked = defaultdict(list)
    for row in shared.rows(contexts):
        asked[row["document_id"]].append((row["query"], row["draw"]))
    for name, queries in asked.items():
        whole = [("image", 0), ("text", 0)]
        known = roles[name] in ("train", "memory")
        assert sorted(queries) == whole + ([("text", 1), ("text", 2)] if known else [])
    assert Counter(roles[name] for name in asked) == Counter(
        train=48, memory=6, validation=6, evaluation=6
    )
    assert contexts.rows_in == contexts.rows_out == 54 * 4 + 12 * 2


def test_contexts_are_the_best_of_the_memory_but_never_the_document_itself(
    shared, embeddings, roles, contexts
):
    own = {row["document_id"]: row for row in shared.rows(embeddings)}
    held = sorted(name for name in own if roles[name] in ("train", "memory"))
    texts, images = (
        np.array([own[name][side] for name in held], dtype=np.float32)
        for side in ("text_vector", "image_vector")
    )
    vectors = document_vectors(texts, images)
    for row in shared.rows(contexts):
        name = row["document_id"]
        assert set(row["context_ids"]) <= set(held) - {name}
        queries = [own[name]["text_vector"], *own[name]["query_vectors"]]
        query = own[name]["image_vector"] if row["query"] == "image" else queries[row["draw"]]
        scores = vectors @ np.array(query, dtype=np.float32)
        best = sorted(
            (s for s, other in zip(scores, held, strict=True) if other != name), reverse=True
        )
        np.testing.assert_allclose(row["context_scores"], best[:2], atol=1e-5)
        assert set(row["skipped_ids"]) <= {name}
        assert len(row["context_ranks"]) == 2


def test_counts_say_how_often_each_rule_fired(shared, embeddings, memory):
    config = Config(selection=SelectionConfig(compare="image", near_copy=0.99, floor=0.0))
    made = shared.run(
        RetrieveContexts(),
        config,
        embeddings=Selection.of(embeddings, role={"train"}),
        memory=memory,
    )
    reasons = Counter(reason for row in shared.rows(made) for reason in row["skipped_reasons"])
    counted = {name: n for name, n in made.counts.items() if name.startswith("skipped_")}
    assert counted == {f"skipped_{reason}": n for reason, n in reasons.items()}
    assert counted["skipped_itself"] > 0
    short = sum(len(row["context_ids"]) < 2 for row in shared.rows(made))
    assert made.counts["queries_short_of_contexts"] == short


def test_a_shard_of_nobody_gives_an_empty_shard(world, shared, embeddings, memory):
    empty = shared.reader.table(embeddings.shards[0]).slice(0, 0)
    nobody = shared.publish("embeddings", [(empty, {"role": "train", "source": "none"})])
    made = shared.run(RetrieveContexts(), Config(), embeddings=nobody, memory=memory)
    assert (made.rows_in, [shard.rows for shard in made.shards]) == (0, [0])
