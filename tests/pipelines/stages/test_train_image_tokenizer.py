from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from pipelines.errors import UsageError
from pipelines.models import load_image_tokenizer
from pipelines.records import image_stack
from pipelines.runtime.reader import Selection
from pipelines.stages.tokenize_images import Config as TokenizeConfig
from pipelines.stages.tokenize_images import TokenizeImages
from pipelines.stages.train_image_tokenizer import Checkpoint, Config, TrainImageTokenizer
from racm3.encoder.clip import ClipSpec
from racm3.image_tokenizer import PRESETS, PublicVQ, PublicVQSpec
from racm3.image_tokenizer.public import public_state
from racm3.training.image_tokenizer import images_to_tensor
from storage_schemas.fingerprint import sha256_file


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


# --- from a checkpoint ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def public() -> PublicVQ:
    """Of the layout llamagen, 16 pixels to 4x4 codes of 12, with random weights."""
    torch.manual_seed(0)
    small = {"channels": 32, "multipliers": (1, 1, 1), "blocks": 1, "latent_channels": 4}
    spec = PublicVQSpec(layout="llamagen", image_size=16, codebook_size=12, code_dim=4, **small)
    model = PublicVQ(spec)
    model.codebook.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(public, tmp_path_factory) -> Path:
    """As its trainer would leave it: other things beside the weights."""
    path = tmp_path_factory.mktemp("weights") / "vq.pt"
    state = public_state(public) | {"quantize.codebook_used": torch.zeros(9)}
    torch.save({"model": state, "discriminator": {"a": torch.zeros(1)}, "steps": 9}, path)
    return path


@pytest.fixture(scope="module")
def published(shared, documents, checkpoint):
    return shared.run(
        TrainImageTokenizer(),
        Config(pretrained=Checkpoint(file=str(checkpoint), image_size=16), validation_images=5),
        documents=Selection.of(documents, role={"train"}),
        validation=Selection.of(documents, role={"validation"}),
    )


def test_a_checkpoint_is_published_as_it_is(shared, public, checkpoint, published):
    loaded = load_image_tokenizer(shared.reader.files(Selection.of(published)))
    assert isinstance(loaded, PublicVQ)
    assert loaded.spec == public.spec
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.encode(images), public.encode(images))
    facts = published.facts
    assert facts["checkpoint_sha256"] == sha256_file(checkpoint)
    assert (facts["checkpoint"], facts["ignored_tensors"]) == ("vq.pt", 1)
    assert facts["psnr_images"] == 5
    assert 3 < facts["psnr"] < 30
    assert 1 <= facts["codes_used"] <= 12
    assert shared.rows(published, "training_log") == []


def test_everything_after_it_reads_it(shared, documents, public, published):
    tokens = shared.run(
        TokenizeImages(),
        TokenizeConfig(batch_size=8),
        documents=Selection.of(documents, role={"validation"}),
        image_tokenizer=published,
    )
    rows = {row["document_id"]: row for row in shared.rows(tokens)}
    assert len(rows) == 6
    assert {(row["grid_height"], row["grid_width"]) for row in rows.values()} == {(4, 4)}
    kept = [row for row in shared.rows(documents) if row["document_id"] in rows]
    images = images_to_tensor(image_stack([row["image"] for row in kept], 16))
    codes = np.array([rows[row["document_id"]]["codes"] for row in kept])
    assert (public.encode(images).numpy() == codes).mean() > 0.98


def test_a_checkpoint_is_known_by_its_bytes(shared, documents, checkpoint, published, tmp_path):
    moved = tmp_path / "elsewhere.pt"
    moved.write_bytes(checkpoint.read_bytes())
    config = Config(pretrained=Checkpoint(file=str(moved), image_size=16))
    stage = TrainImageTokenizer()
    same = stage.environment(config)
    again = shared.run(stage, config, documents=Selection.of(documents, role={"validation"}))
    assert again.content_digest == published.content_digest  # whatever it was measured on
    moved.write_bytes(moved.read_bytes() + b" ")
    assert stage.environment(config) != same
    assert stage.environment(Config()) == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "llamagen-vq16"}, r"vq.pt: The state dict is not .* factor 16 .* missing"),
        ({"file": "absent.pt"}, "there is no file absent.pt"),
        ({"file": __file__, "image_size": 16}, "cannot be read"),
    ],
)
def test_a_checkpoint_that_is_another_is_refused(shared, documents, checkpoint, fields, message):
    given = Checkpoint(**({"file": str(checkpoint)} | {"preset": "llamagen-vq8"} | fields))
    if "image_size" in fields:
        given = Checkpoint(file=fields["file"], image_size=16)
    with pytest.raises(UsageError, match=message):
        shared.run(TrainImageTokenizer(), Config(pretrained=given), documents=documents)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "llamagen-vq61"}, "did you mean llamagen-vq16"),
        ({}, "give image_size"),
        ({"preset": "llamagen-vq16", "image_size": 100}, "multiple of the factor"),
    ],
)
def test_a_checkpoint_of_unknown_shape_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({"pretrained": {"file": "vq.pt"} | fields})


def test_the_image_size_is_known_without_the_file():
    assert Config().image_size == 64
    preset = {"file": "vq.pt", "preset": "chameleon-f16-8192"}
    for given, size in ((preset, 512), (preset | {"image_size": 256}, 256)):
        config = Config.model_validate({"pretrained": given})
        assert config.image_size == size
        assert config.pretrained.spec() == replace(PRESETS[preset["preset"]], image_size=size)
    assert Config(pretrained=Checkpoint(file="vq.pt", image_size=24)).image_size == 24


# --- with features ----------------------------------------------------------------------------


def test_features_of_a_clip_can_be_part_of_the_loss(
    shared, documents, encoder, image_tokenizer, image_tokenizer_config, tmp_path
):
    files = shared.reader.files(Selection.of(encoder))
    weights = tmp_path / "clip.safetensors"
    save_file(load_file(files["model.safetensors"]), weights)
    spec = json.loads(files["config.json"].read_text()) | {"pretrained": str(weights)}
    task = replace(image_tokenizer_config.task, perceptual_weight=0.5)
    config = image_tokenizer_config.model_copy(update={"features": ClipSpec(**spec), "task": task})
    made = shared.run(
        TrainImageTokenizer(),
        config,
        documents=Selection.of(documents, role={"train"}),
        validation=Selection.of(documents, role={"validation"}),
    )
    assert made.content_digest != image_tokenizer.content_digest
    first, without = (
        next(
            row["value"]
            for row in shared.rows(one, "training_log")
            if (row["split"], row["metric"]) == ("train", "reconstruction")
        )
        for one in (made, image_tokenizer)
    )
    assert without < first < without + 0.5 * 4  # the same batch, and the term on top of it
    assert TrainImageTokenizer().environment(config) == TrainImageTokenizer().environment(config)
    assert TrainImageTokenizer().environment(config) != ""


def test_features_and_their_weight_need_each_other():
    with pytest.raises(ValidationError, match="need each other"):
        Config.model_validate({"task": {"perceptual_weight": 1.0}})
    with pytest.raises(ValidationError, match="need each other"):
        Config.model_validate({"features": {"model": "ViT-B-32", "pretrained": "openai"}})
