"""Prompts whose contexts show one side: what sampling reads is what training laid out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from racm3.document import DocumentTokens
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.objective.masking import mask, to_row
from racm3.objective.spans import Span
from racm3.sampling.decode import SamplingConfig
from racm3.sampling.tasks import Prompt, sample_captions, sample_images
from racm3.sequence.batch import Batch, Modality
from racm3.sequence.layout import Layout, lay_out
from racm3.training.generator import measured_nll
from racm3.vocabulary import Vocabulary

LAYOUT = Layout(vocabulary=Vocabulary(20, 16, 2), image_tokens=9, max_text_tokens=6)


@pytest.fixture(scope="module")
def model():
    config = GeneratorConfig(
        layers=2, width=36, heads=3, positions="document", num_places=LAYOUT.places.size,
        init_std=0.2,
    )  # fmt: skip
    return Generator(config, LAYOUT.vocabulary, generator=torch.Generator().manual_seed(0)).eval()


def documents(count):
    rng = np.random.default_rng(2)
    return [
        DocumentTokens(
            text=tuple(rng.integers(0, 20, 4).tolist()),
            image=tuple(rng.integers(0, 16, 9).tolist()),
        )
        for _ in range(count)
    ]


def trained_logprob(model, contexts, document, task):
    """Log p of what the task writes, in the row that training makes of the sample."""
    sequence = lay_out(document, contexts, LAYOUT)
    caption = sequence.main_segments[0]
    spans = (Span(caption.start, caption.stop),) if task is sample_captions else ()
    row = to_row(sequence, mask(sequence, spans, LAYOUT.vocabulary), LAYOUT, alpha=0)
    written = Modality.IMAGE if task is sample_images else Modality.TEXT
    weights = (row.is_main & (row.modality == written)).astype(np.float32)
    weights[row.ids == LAYOUT.vocabulary.eoss_id] = 1
    batch = Batch.of_rows([replace(row, weights=weights)], pad_id=0)
    return -float(measured_nll(model, batch)[0][0])


@pytest.mark.parametrize("task", [sample_images, sample_captions])
@pytest.mark.parametrize("modality", ["both", "text", "image"])
def test_a_sample_has_the_likelihood_that_training_gives_it(model, task, modality):
    first, second, main = documents(3)
    contexts = (first.showing(modality), second.showing(modality))
    prompt = Prompt(contexts=contexts, text=main.text, image=main.image)
    sample = task(model, LAYOUT, [prompt], SamplingConfig(), seeds=[5])[0]
    expected = trained_logprob(model, contexts, sample.document, task)
    assert sample.logprob == pytest.approx(expected, abs=1e-3)
    other = trained_logprob(model, (first, second.showing("text")), sample.document, task)
    assert abs(sample.logprob - other) > 1e-3  # what is shown matters


def test_a_main_document_must_have_its_image(model):
    (main,) = documents(1)
    with pytest.raises(ValueError, match="An image has 0 codes"):
        sample_captions(model, LAYOUT, [Prompt(image=())], SamplingConfig(), seeds=[0])
    broken = replace(main, image=main.image[:3])
    with pytest.raises(ValueError, match="An image has 3 codes"):
        sample_images(
            model, LAYOUT, [Prompt(contexts=(broken,), text=(1,))], SamplingConfig(), seeds=[0]
        )
