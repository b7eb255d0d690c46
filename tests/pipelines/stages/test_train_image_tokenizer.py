from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from pipelines.errors import UsageError
from pipelines.models import load_image_tokenizer
from pipelines.runtime.reader import Selection
from pipelines.stages.train_image_tokenizer import Config, TrainImageTokenizer


def test_the_tokenizer_loads_and_codes_come_back(shared, image_tokenizer):
    loaded = load_image_tokenizer(shared.reader.files(Selection.of(image_tokenizer)))
    codes = loaded.encode(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert codes.shape == (2, 4)
    assert loaded.decode(codes).shape == (2, 3, 16, 16)


def test_facts_are_measured_on_held_out_images(image_tokenizer):
    facts = image_tokenizer.facts
    assert facts["psnr_held_out"]
    assert facts["psnr_images"] == 6
    assert facts["psnr"] > 3
    assert 1 <= facts["codes_used"] <= 16
    assert image_tokenizer.rows_in == image_tokenizer.rows_out == 48


def test_without_validation_the_last_step_is_kept(shared, documents, image_tokenizer_config):
    made = shared.run(
        TrainImageTokenizer(),
        image_tokenizer_config,
        documents=Selection.of(documents, role={"train"}),
    )
    assert made.facts["best_step"] == 12
    assert not made.facts["psnr_held_out"]


def test_a_warm_up_without_end_is_refused():
    with pytest.raises(ValidationError, match="warmup_steps"):
        Config.model_validate({"task": {"warmup_steps": 50}, "fit": {"steps": 50}})


def test_no_document_is_an_error_in_a_sentence(shared, documents, image_tokenizer_config):
    none = Selection(manifest=documents, shards=())
    with pytest.raises(UsageError, match="no document is selected"):
        shared.run(TrainImageTokenizer(), image_tokenizer_config, documents=none)
