import copy
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from racm3.document import DocumentTokens
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.objective.masking import mask, to_row
from racm3.objective.spans import Span
from racm3.sampling.decode import SamplingConfig
from racm3.sampling.tasks import Prompt, best_of, infill_images, sample_captions, sample_images
from racm3.sequence.batch import Batch
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


def documents(n, seed=0):
    r = np.random.default_rng(seed)
    return [
        DocumentTokens(
            text=tuple(r.integers(0, 20, r.integers(1, 7)).tolist()),
            image=tuple(r.integers(0, 16, 9).tolist()),
        )
        for _ in range(n)
    ]


def prompts(n=5):
    d = documents(3 * n)
    return [
        Prompt(
            contexts=tuple(d[3 * i : 3 * i + i % 3]),
            text=d[3 * i + 2].text,
            image=d[3 * i + 2].image,
        )
        for i in range(n)
    ]


def expected_logprob(model, prompt, document, spans=()):
    """Teacher-forced: the row that training would make of the sampled document."""
    sequence = lay_out(document, prompt.contexts, LAYOUT)
    caption, image = sequence.main_segments
    if spans == "caption":
        spans = (Span(caption.start, caption.stop),)
    elif spans:
        spans = (Span(image.start + spans[0], image.start + spans[1]),)
    masked = mask(sequence, spans, LAYOUT.vocabulary)
    row = to_row(sequence, masked, LAYOUT, alpha=0)
    written = len(row.ids) - (1 if not spans else 0)
    n = {True: spans[0].stop - spans[0].start if spans else 9}[True]
    start = written - n - (1 if spans else 0)
    weights = np.zeros_like(row.weights)
    weights[start : start + n] = 1
    if spans and caption.start == spans[0].start:
        weights[start + n] = 1
    batch = Batch.of_rows([replace(row, weights=weights)], pad_id=0)
    return -float(measured_nll(model, batch)[0][0])


def infill(model, layout, given, config, **rest):
    return infill_images(model, layout, given, [(2, 6)] * len(given), config, **rest)


TASKS = [(sample_images, ()), (sample_captions, "caption"), (infill, (2, 6))]


@pytest.mark.parametrize(("task", "spans"), TASKS)
@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(guidance=3.0, top_p=0.9),
        SamplingConfig(guidance=2.0, null_lacks="contexts"),
        SamplingConfig(guidance=2.0, null_lacks="both"),
        SamplingConfig(contrastive_k=3),
    ],
)
def test_samples_parse_and_their_logprob_is_that_of_training(model, task, spans, config):
    given = prompts()
    samples = task(model, LAYOUT, given, config, seeds=range(5))
    for prompt, sample in zip(given, samples, strict=True):
        assert len(sample.document.image) == 9
        assert all(0 <= code < 16 for code in sample.document.image)
        assert 1 <= len(sample.document.text) <= 6
        assert all(0 <= token < 20 for token in sample.document.text)
        if task is not sample_images:
            assert sample.document.image[:2] == prompt.image[:2]
        expected = expected_logprob(model, prompt, sample.document, spans)
        assert sample.logprob == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("task", [sample_images, sample_captions, infill])
@pytest.mark.parametrize("lacks", ["prompt", "contexts", "both"])
def test_a_sample_does_not_depend_on_its_batch_mates(model, task, lacks):
    given = prompts(6)
    config = SamplingConfig(guidance=2.0, null_lacks=lacks)
    together = task(model, LAYOUT, given, config, seeds=range(6))
    alone = [task(model, LAYOUT, [p], config, seeds=[i])[0] for i, p in enumerate(given)]
    assert [s.document for s in together] == [s.document for s in alone]


@pytest.mark.parametrize("lacks", ["prompt", "contexts", "both"])
@pytest.mark.parametrize("task", [sample_images, sample_captions, infill])
def test_equal_prompts_are_read_once_and_drawn_each_by_its_own_seed(model, task, lacks):
    given = [prompts(3)[2]] * 4
    config = SamplingConfig(guidance=2.0, null_lacks=lacks, temperature=3.0)
    read = []
    hook = model.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    together = task(model, LAYOUT, given, config, seeds=range(4))
    hook.remove()
    assert read[:2] == [1, 1]  # the prompt, the null prompt
    assert set(read[2:]) == {4}
    alone = [task(model, LAYOUT, [p], config, seeds=[i])[0] for i, p in enumerate(given)]
    assert [s.document for s in together] == [s.document for s in alone]
    assert len({s.document for s in together}) > 1


@pytest.mark.parametrize("task", [sample_images, sample_captions, infill])
def test_guidance_by_a_null_prompt_is_decoding_of_that_prompt(model, task):
    """At scale 0 only the null prompt speaks; without contexts it is another prompt's."""
    given = [p for p in prompts(9) if p.contexts]
    bare = [replace(p, contexts=()) for p in given]

    def written(some, *, lacks, scale=0.0):
        config = SamplingConfig(guidance=scale, null_lacks=lacks)
        samples = task(model, LAYOUT, some, config, seeds=range(len(some)))
        return [s.document for s in samples]

    assert written(given, lacks="contexts") == written(bare, lacks="contexts", scale=1.0)
    assert written(given, lacks="both") == written(bare, lacks="prompt")
    assert written(given, lacks="prompt") != written(bare, lacks="prompt")
    assert written(given, lacks="both") != written(given, lacks="contexts")


def test_the_most_likely_candidate_wins(model):
    draw = partial(sample_images, model, LAYOUT)
    results = best_of(
        lambda p, s: draw(p, SamplingConfig(), seeds=s), prompts(2), seeds=[1, 2], count=4
    )
    for best, candidates, scores in results:
        assert len({c.document.image for c in candidates}) > 1
        assert math.isclose(max(scores), best.logprob / best.written)


def test_prompts_without_what_the_task_needs_are_refused(model):
    with pytest.raises(ValueError, match="text"):
        sample_images(model, LAYOUT, [Prompt()], SamplingConfig(), seeds=[0])
    with pytest.raises(ValueError, match="image"):
        sample_captions(model, LAYOUT, [Prompt()], SamplingConfig(), seeds=[0])
    with pytest.raises(ValueError, match="hole"):
        infill_images(model, LAYOUT, prompts(1), [(3, 3)], SamplingConfig(), seeds=[0])


@pytest.mark.gpu
@pytest.mark.parametrize("task", [sample_images, sample_captions, infill])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_cuda_writes_what_the_cpu_writes(model, task, guidance):
    """Draws are made on the CPU from each sample's own seed; only logits come from the device."""
    config = SamplingConfig(guidance=guidance)
    here = task(model, LAYOUT, prompts(), config, seeds=range(5))
    there = task(copy.deepcopy(model).cuda(), LAYOUT, prompts(), config, seeds=range(5))
    assert [s.document for s in there] == [s.document for s in here]
