from __future__ import annotations

import json

import numpy as np
import pytest

from pipelines.errors import UsageError
from pipelines.models import load_encoder
from pipelines.records import image_array
from pipelines.runtime.reader import Selection
from pipelines.stages.train_encoder import TrainEncoder


def test_the_encoder_loads_and_gives_unit_vectors(shared, documents, encoder):
    loaded = load_encoder(shared.reader.files(Selection.of(encoder)))
    rows = [row for row in shared.rows(documents) if row["outcome"] == "kept"][:5]
    texts = loaded.encode_text([row["caption"] for row in rows])
    images = loaded.encode_images([image_array(row["image"]) for row in rows])
    for vectors in (texts, images):
        assert vectors.shape == (5, 16)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_facts_log_and_files_tell_what_was_fitted(shared, encoder):
    assert encoder.kind == "encoder"
    assert encoder.rows_in == encoder.rows_out == 48
    assert encoder.facts["steps"] == 8
    assert np.isfinite(encoder.facts["validation"]["loss"])
    log = shared.rows(encoder, "training_log")
    assert {row["split"] for row in log} == {"train", "validation"}
    spec = json.loads(shared.reader.file(encoder.file("config.json")).read_text())
    assert spec["pretrained"] is None
    tokenizer = json.loads(shared.reader.file(encoder.file("tokenizer.json")).read_text())
    assert json.loads(spec["tokenizer_json"]) == tokenizer


def test_a_scorer_is_another_artifact_with_the_same_bytes_again(
    world, shared, documents, encoder_config, encoder
):
    inputs = {
        "documents": Selection.of(documents, role={"train"}),
        "validation": Selection.of(documents, role={"validation"}),
    }
    scorer = shared.run(TrainEncoder("scorer"), encoder_config, **inputs)
    assert scorer.kind == "scorer"
    assert scorer.artifact_id != encoder.artifact_id
    weights = {made.file("model.safetensors").sha256 for made in (scorer, encoder)}
    assert len(weights) == 1  # the kind is a name: the same config gives the same weights


def test_too_few_pairs_are_an_error_in_a_sentence(shared, documents, encoder_config):
    few = Selection.of(documents, role={"memory"})
    with pytest.raises(UsageError, match=r"6 documents .*batch_size 16"):
        shared.run(TrainEncoder(), encoder_config, documents=few)
