from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from racm3.encoder.augment import AugmentConfig
from racm3.encoder.clip import ClipSpec, encoder_of, load_clip
from racm3.encoder.tokenizer import EncoderTokenizer
from racm3.training.encoder import (
    EncoderShape,
    EncoderTask,
    EncoderTrainingConfig,
    Pairs,
    train_encoder,
)
from racm3.training.fit import FitConfig

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "grey": (90,) * 3,
    "black": (0,) * 3,
    "yellow": (230, 230, 0),
    "cyan": (0, 220, 220),
    "pink": (255, 0, 200),
}


@pytest.fixture(scope="module")
def pairs():
    images = []
    for colour in COLOURS.values():
        image = np.full((32, 32, 3), 255, np.uint8)
        image[8:24, 4:28] = colour
        images.append(image)
    return Pairs(captions=[f"a {name} square" for name in COLOURS], images=images)


def config(steps=60, **shape):
    sizes = {"embed_dim": 16, "image_width": 32, "text_width": 32, "patch_size": 16}
    sizes |= {"image_layers": 1, "context_length": 16, "vocab_size": 300} | shape
    return EncoderTrainingConfig(
        shape=EncoderShape(**sizes),
        augment=AugmentConfig(flip=0.0, shift=0.0, drop_words=0.0),
        fit=FitConfig(steps=steps, learning_rate=5e-3, warmup_steps=5, validate_every=20),
        batch_size=8,
    )


def test_it_learns_the_pairs_and_the_artifact_reads_back(pairs, tmp_path):
    fitted = train_encoder(pairs, config(), validation=pairs, checkpoint_dir=tmp_path / "c")
    rows = [row.metrics for row in fitted.result.log if row.split == "validation"]
    assert rows[-1]["loss"] < 0.5 * np.log(8)
    assert max(row["text_to_image_r1"] for row in rows) >= 0.75
    save_file(fitted.model.state_dict(), tmp_path / "w.safetensors")
    spec = ClipSpec(
        model=fitted.spec.model,
        pretrained=str(tmp_path / "w.safetensors"),
        tokenizer_json=fitted.spec.tokenizer_json,
    )
    again = load_clip(spec)
    assert (
        again.encode_images(pairs.images)
        == encoder_of(fitted.model, fitted.spec).encode_images(pairs.images)
    ).all()


def test_resuming_gives_the_same_bytes(pairs, tmp_path):
    class Stop(Exception):
        pass

    def stop(step, path):
        raise Stop

    short = EncoderTrainingConfig(
        shape=config().shape,
        fit=FitConfig(steps=4, warmup_steps=1, checkpoint_every=2, validate_every=2),
        batch_size=4,
    )
    with pytest.raises(Stop):
        train_encoder(pairs, short, checkpoint_dir=tmp_path, after_checkpoint=stop)
    resumed = train_encoder(pairs, short, checkpoint_dir=tmp_path).model.state_dict()
    whole = train_encoder(pairs, short).model.state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("tower", [{}, {"image_tower": "resnet", "image_width": 8}])
def test_a_batch_is_a_function_of_seed_step_and_rank(pairs, tower):
    tokenizer = EncoderTokenizer.train(pairs.captions, vocab_size=300)
    task = EncoderTask(pairs, config(**tower), tokenizer)
    first = task.batch(3, rank=0, world_size=2)
    again = task.batch(3, rank=0, world_size=2)
    other = task.batch(3, rank=1, world_size=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    together = {tuple(row) for part in (first, other) for row in part[1].tolist()}
    assert len(together) == 8  # an epoch of one batch: both ranks see every pair once
    loss, numbers = task.loss(0, rank=0, world_size=1)
    assert torch.isfinite(loss)
    assert numbers["tokens"] > 0
    assert task.step_flops(0) > 0


def test_partners_are_drawn_into_the_second_half_and_their_images_learned(pairs):
    twice = Pairs(captions=[*pairs.captions, *pairs.captions], images=[*pairs.images] * 2)
    settings = replace(config(), image_contrast=1.0, alike=0.99)
    task = EncoderTask(twice, settings, EncoderTokenizer.train(twice.captions, vocab_size=300))
    for step in range(4):
        images, _, caption = task.batch(step, rank=0, world_size=1)
        assert caption[:4].tolist() == caption[4:].tolist()  # the same colour, the other document
        assert torch.equal(task.batch(step, rank=0, world_size=1)[0], images)
    loss, logged = task.loss(0, rank=0, world_size=1)
    assert loss.item() == pytest.approx(logged["clip_loss"] + logged["image_loss"], rel=1e-6)
    with pytest.raises(ValueError, match="needs one worker"):
        task.batch(0, rank=0, world_size=2)
    fitted = train_encoder(twice, settings)
    first, last = (fitted.result.log[i].metrics["image_loss"] for i in (0, -1))
    assert last < 0.5 * first


def test_refusals(pairs):
    with pytest.raises(ValueError, match="must be even"):
        EncoderTrainingConfig(batch_size=3, image_contrast=1.0)
    with pytest.raises(ValueError, match="alike"):
        EncoderTrainingConfig(alike=0.0)
    with pytest.raises(ValueError, match="fewer than batch_size"):
        train_encoder(pairs, EncoderTrainingConfig())
    with pytest.raises(ValueError, match="one for each"):
        Pairs(captions=["a"], images=[])
    with pytest.raises(ValueError, match="multiple"):
        EncoderShape(image_size=33)
    with pytest.raises(ValueError, match="at least 2"):
        EncoderTrainingConfig(batch_size=1)
