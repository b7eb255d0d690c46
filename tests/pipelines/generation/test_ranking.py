"""Candidates scored by a CLIP."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.generation.ranking import ClipRanker, painted, picture
from pipelines.records import image_array
from racm3.document import DocumentTokens
from racm3.encoder.clip import ClipEncoder, ClipSpec, encoder_of, make_clip
from racm3.encoder.tokenizer import EncoderTokenizer
from racm3.image_tokenizer.vqgan import VQGAN, VQGANConfig
from racm3.sampling.tasks import Sampled
from racm3.text_tokenizer import TextTokenizer

SIDE, WORDS = 16, ["a red square", "a blue ring", "two green bars"]


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    tokenizer = EncoderTokenizer.train(WORDS, vocab_size=280)
    vision = {"image_size": SIDE, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    text = {"context_length": 16, "width": 16, "heads": 2, "layers": 1}
    spec = ClipSpec(
        model={
            "embed_dim": 8,
            "vision_cfg": vision,
            "text_cfg": text | {"vocab_size": tokenizer.vocab_size},
        },
        tokenizer_json=tokenizer.to_json(),
    )
    torch.manual_seed(0)
    assert isinstance(spec.model, dict)
    return encoder_of(make_clip(spec.model), spec)


@pytest.fixture(scope="module")
def images() -> VQGAN:
    config = VQGANConfig(image_size=SIDE, codebook_size=8, code_dim=4, patch=4, widths=(8, 16))
    chance = torch.Generator().manual_seed(0)
    model = VQGAN(config, generator=chance).eval()
    with torch.no_grad():
        vectors = model.codebook.vectors
        vectors.copy_(torch.randn(vectors.shape, generator=chance))
    return model


def test_a_score_is_the_cosine_of_caption_and_image_whatever_the_batch(
    encoder: ClipEncoder, images: VQGAN
) -> None:
    text, random = TextTokenizer.train(WORDS, vocab_size=260), np.random.default_rng(0)
    samples = [
        Sampled(
            document=DocumentTokens(
                text=tuple(text.encode(WORDS[i % 3])),
                image=tuple(random.integers(0, 8, 4).tolist()),
            ),
            logprob=-1.0,
            written=4,
        )
        for i in range(70)
    ]
    ranker = ClipRanker(encoder, images, text)
    scores = ranker.score(samples)
    assert scores[-1] == pytest.approx(ranker.score(samples[-1:])[0], abs=1e-5)
    for index in (0, 1, 65):
        (image,) = painted(images, [samples[index].document.image])
        vectors = (encoder.encode_text([WORDS[index % 3]]), encoder.encode_images([image]))
        assert scores[index] == pytest.approx(float(np.sum(vectors[0] * vectors[1])), abs=1e-5)
    assert len({round(score, 6) for score in scores}) > 3
    own = encoder.encode_images(painted(images, [one.document.image for one in samples]))
    assert ranker.score(samples, own) == pytest.approx(scores, abs=1e-5)
    seen = encoder.encode_text([WORDS[0]] * len(samples))  # as if the picture were that caption
    for score, sample in zip(ranker.score(samples, seen), samples, strict=True):
        is_it = text.decode(list(sample.document.text)) == WORDS[0]
        assert (score == pytest.approx(1, abs=1e-5)) == is_it


def test_a_picture_is_what_its_codes_paint(images: VQGAN) -> None:
    codes = (1, 7, 0, 3)
    other = picture(images, (1, 7, 0, 4))
    assert other != picture(images, codes)
    assert np.array_equal(image_array(picture(images, codes)), painted(images, [codes])[0])
