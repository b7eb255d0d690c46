from __future__ import annotations

import numpy as np
import pytest

from pipelines.errors import UsageError
from pipelines.models import device, load_encoder
from pipelines.records import image_array, vector_matrix
from pipelines.runtime.reader import Selection
from pipelines.stages.embed_documents import Config, EmbedDocuments
from racm3.encoder.clip import ClipSpec


def test_every_kept_document_has_its_vectors(shared, documents, encoder, embeddings):
    kept = {row["document_id"]: row for row in shared.rows(documents) if row["outcome"] == "kept"}
    table = shared.table(embeddings)
    assert set(table.column("document_id").to_pylist()) == set(kept)
    assert embeddings.rows_in == embeddings.rows_out == len(kept) == 66
    loaded = load_encoder(shared.reader.files(Selection.of(encoder)))
    rows = [kept[name] for name in table.column("document_id").to_pylist()]
    texts = loaded.encode_text([row["caption"] for row in rows])
    images = loaded.encode_images([image_array(row["image"]) for row in rows])
    near = 1e-5 if device() == "cpu" else 1e-3  # a GPU multiplies with TF32, in any batch its own
    np.testing.assert_allclose(vector_matrix(table.column("text_vector")), texts, atol=near)
    np.testing.assert_allclose(vector_matrix(table.column("image_vector")), images, atol=near)


def test_draws_are_unit_vectors_that_depend_on_the_document_alone(
    shared, documents, encoder, embeddings
):
    table = shared.table(embeddings)
    draws = np.array(table.column("query_vectors").to_pylist(), dtype=np.float32)
    assert draws.shape == (66, 2, 16)
    np.testing.assert_allclose(np.linalg.norm(draws, axis=2), 1, atol=1e-5)
    more = shared.run(EmbedDocuments(), Config(draws=3), documents=documents, encoder=encoder)
    again = np.array(shared.table(more).column("query_vectors").to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(again[:, :2], draws, atol=1e-5)


def test_without_draws_the_column_is_there_and_empty(shared, documents, encoder):
    made = shared.run(EmbedDocuments(), Config(draws=0), documents=documents, encoder=encoder)
    assert {tuple(d) for d in shared.table(made).column("query_vectors").to_pylist()} == {()}


def test_a_shard_without_documents_gives_an_empty_shard(world, shared, documents, encoder):
    empty = world.publish("documents", [(shared.table(documents).slice(0, 0), {"role": "train"})])
    stage = EmbedDocuments()
    (plan,) = stage.plan(Config(), {"documents": Selection.of(empty), "encoder": encoder}, None)
    run = stage.build(Config(), {"encoder": Selection.of(encoder)}, shared.reader)
    output = run(plan, world.reader)
    assert (output.table.num_rows, output.rows_in) == (0, 0)


def test_equal_inputs_give_equal_bytes(world, shared, documents, encoder, embeddings):
    stage, config = EmbedDocuments(), Config(draws=2)
    run = stage.build(config, {"encoder": Selection.of(encoder)}, shared.reader)
    inputs = {"documents": Selection.of(documents), "encoder": Selection.of(encoder)}
    plan = stage.plan(config, inputs, shared.reader)[0]
    again = run(plan, shared.reader).table
    published = shared.reader.table(embeddings.shards[0])
    assert again.cast(published.schema).sort_by("document_id").equals(published)


def test_a_public_clip_is_read_from_its_weights_file(shared, documents, encoder, tmp_path):
    import json

    files = shared.reader.files(Selection.of(encoder))
    spec = json.loads(files["config.json"].read_text())
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(files["model.safetensors"].read_bytes())
    spec |= {"pretrained": str(weights)}
    config = Config(pretrained=ClipSpec(**spec), draws=2)
    held = Selection.of(documents, role={"validation"})
    made = shared.run(EmbedDocuments(), config, documents=held)
    own = shared.run(EmbedDocuments(), Config(draws=2), documents=held, encoder=encoder)
    assert made.content_digest == own.content_digest
    digest = EmbedDocuments().environment(config)
    weights.write_bytes(weights.read_bytes() + b" ")
    assert EmbedDocuments().environment(config) != digest


def test_one_encoder_and_not_two(shared, documents, encoder):
    config = Config(pretrained=ClipSpec(model="ViT-B-32", pretrained="openai"))
    with pytest.raises(UsageError, match="either"):
        shared.run(EmbedDocuments(), config, documents=documents, encoder=encoder)
    with pytest.raises(UsageError, match="either"):
        shared.run(EmbedDocuments(), Config(), documents=documents)
