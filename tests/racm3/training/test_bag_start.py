import numpy as np
import pytest
import torch

from racm3.encoder.clip import encoder_of
from racm3.encoder.tokenizer import EncoderTokenizer
from racm3.training.encoder import (
    EncoderShape,
    EncoderTask,
    EncoderTrainingConfig,
    Pairs,
    train_encoder,
)
from racm3.training.fit import FitConfig

WORDS = ("flag", "red", "cat", "small", "dog", "hat", "sun", "old", "sea", "car", "tree", "leaf")
SHAPE = EncoderShape(
    embed_dim=32, image_width=32, image_layers=1, text_width=32, vocab_size=400, context_length=16
)


def pairs(n=96):
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(WORDS, 3, replace=False)) for _ in range(n)]
    images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(n)]
    return Pairs(captions=captions, images=images)


def config(**changes):
    fit = FitConfig(steps=3, learning_rate=1e-3, warmup_steps=1, validate_every=3)
    return EncoderTrainingConfig(shape=SHAPE, fit=fit, batch_size=24, text_tower="bag", **changes)


@pytest.fixture
def task():
    some = pairs()
    tokenizer = EncoderTokenizer.train(some.captions, vocab_size=SHAPE.vocab_size)
    return EncoderTask(some, config(), tokenizer)


def test_captions_are_centred_and_no_direction_outweighs_the_others(task):
    with torch.no_grad():
        ids = task.tokenizer(task.captions, context_length=SHAPE.context_length)
        vectors = task.bare.eval().encode_text(ids)
    assert vectors.mean(0).abs().max() < 1e-3
    variances = torch.linalg.eigvalsh(torch.cov(vectors.T))
    assert variances.max() < 1.1


def test_a_rare_word_shared_outweighs_a_frequent_one():
    some = pairs()
    tokenizer = EncoderTokenizer.train(some.captions, vocab_size=SHAPE.vocab_size)
    task = EncoderTask(some, config(), tokenizer)
    from racm3.encoder.clip import ClipSpec

    spec = ClipSpec(
        model=SHAPE.model_cfg(vocab_size=tokenizer.vocab_size), tokenizer_json=tokenizer.to_json()
    )
    encoder = encoder_of(task.bare, spec)
    query, twin, other = encoder.encode_text(
        ["flag bhutan", "the bhutan banner", "flag of the sea"]
    )
    assert query @ twin > query @ other


def test_training_leaves_the_text_tower_alone_and_moves_the_image_tower(task):
    before = {name: value.clone() for name, value in task.bare.state_dict().items()}
    fitted = train_encoder(pairs(), config())
    for name, value in fitted.model.state_dict().items():
        if name.startswith(("visual.", "logit_scale")):
            continue
        assert torch.equal(value, before[name]), name
    moved = fitted.model.state_dict()["visual.proj"]
    assert not torch.equal(moved, before["visual.proj"])
