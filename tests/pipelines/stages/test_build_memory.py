from __future__ import annotations

import numpy as np
import pytest

from pipelines.errors import PipelineError, UsageError
from pipelines.records import INDEX, memory_of, vector_matrix
from pipelines.runtime.reader import Selection
from pipelines.stages.build_memory import BuildMemory, Config
from racm3.retriever.index import ExactIndex, FaissIndex
from racm3.retriever.memory import document_vectors


def test_position_id_and_vector_belong_together(shared, embeddings, memory):
    table, files = shared.table(memory, "memory"), shared.reader.files(Selection.of(memory))
    held = memory_of(table, files)
    assert list(held.document_ids) == sorted(held.document_ids)
    assert len(held) == memory.rows_in == memory.rows_out == 54
    own = {row["document_id"]: row for row in shared.rows(embeddings)}
    for position in (0, 20, 53):
        row = own[held.document_ids[position]]
        text, image = (
            np.array([row[name]], dtype=np.float32) for name in ("text_vector", "image_vector")
        )
        np.testing.assert_allclose(held.vectors[position], document_vectors(text, image)[0])
        np.testing.assert_allclose(held.image_vectors[position], image[0])
    assert set(held.sources) == {"left", "right", "extra"}


def test_the_index_is_exact_and_says_so(shared, memory):
    files = shared.reader.files(Selection.of(memory))
    held = memory_of(shared.table(memory, "memory"), files)
    asked = np.random.default_rng(0).normal(size=(7, held.dim)).astype(np.float32)
    scores, _ = FaissIndex.load(files[INDEX]).search(asked, 5)
    np.testing.assert_allclose(scores, ExactIndex(held.vectors).search(asked, 5)[0], atol=1e-5)
    assert memory.facts["recall_at_10"] == memory.facts["finds_itself"] == 1.0
    assert memory.facts["documents"] == 54


def test_the_order_of_shards_does_not_matter(shared, embeddings, memory):
    chosen = Selection.of(embeddings, role={"train", "memory"})
    turned = Selection(manifest=embeddings, shards=chosen.shards[::-1])
    made = BuildMemory()
    assert shared.run(made, Config(recall_queries=9), embeddings=turned).content_digest == (
        memory.content_digest
    )


def test_a_document_that_comes_twice_is_held_once(world, shared, embeddings):
    table = shared.reader.table(embeddings.shards[0])
    parts = [
        (table, {"source": name, "role": "train", "order": f"{order}"})
        for order, name in enumerate(("first", "second"))
    ]
    twice = world.publish("embeddings", parts)
    made = world.run(BuildMemory(), Config(), embeddings=twice)
    assert (made.rows_in, made.rows_out, made.dropped) == (48, 24, {"repeated_document": 24})
    assert {row["source"] for row in world.rows(made, "memory")} == {"first"}


@pytest.mark.parametrize("role", ["evaluation", "validation"])
def test_what_is_measured_never_enters_a_memory(shared, embeddings, role):
    leaking = Selection.of(embeddings, role={"train", role})
    with pytest.raises(UsageError, match=role):
        shared.run(BuildMemory(), Config(), embeddings=leaking)


def test_an_index_that_cannot_be_built_is_an_error_with_its_reason(shared, embeddings):
    chosen = Selection.of(embeddings, role={"train"})
    with pytest.raises(PipelineError, match=r"index_key.*nonsense"):
        shared.run(BuildMemory(), Config(index_key="nonsense"), embeddings=chosen)


def test_an_approximate_index_tells_its_recall(world):
    random = np.random.default_rng(0)
    vectors = random.normal(size=(400, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    import pyarrow as pa

    from pipelines.records import vector_lists, vectors_column
    from storage_schemas.tables import TABLES

    table = pa.table(
        {
            "document_id": [f"{i:04d}" for i in range(400)],
            "text_vector": vectors_column(vectors),
            "image_vector": vectors_column(vectors),
            "query_vectors": vector_lists(np.zeros((400, 0, 16), np.float32)),
            "image_query_vectors": vector_lists(np.zeros((400, 0, 16), np.float32)),
        }
    )
    assert vector_matrix(table.column("text_vector")).shape == (400, 16)
    table = TABLES["embeddings"].conform(table)
    many = world.publish("embeddings", [(table, {"source": "s", "role": "train", "order": "0"})])
    made = world.run(BuildMemory(), Config(index_key="IVF8,Flat"), embeddings=many)
    assert 0.3 < made.facts["recall_at_10"] <= 1
    assert "IVF" in made.facts["index_type"]
