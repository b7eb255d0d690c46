import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from racm3.document import DocumentTokens
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.objective.masking import mask, to_row
from racm3.objective.spans import Span
from racm3.sampling.candidates import best_of, candidate_seeds
from racm3.sampling.decode import SamplingConfig
from racm3.sampling.holes import bridged
from racm3.sampling.tasks import (
    Prompt,
    infill_captions,
    infill_images,
    sample_captions,
    sample_images,
)
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


def expected_logprob(model, prompt, document, spans=(), drawn=None):
    """Teacher-forced: the row that training would make of the sampled document.

    `spans` are of the sequence; `drawn` says which tokens of the tail were (None: all but the
    sentinels, and `<eoss>` only of a text), by their place before masking.
    """
    sequence = lay_out(document, prompt.contexts, LAYOUT)
    masked = mask(sequence, spans, LAYOUT.vocabulary)
    row = to_row(sequence, masked, LAYOUT, alpha=0)
    image = sequence.main_segments[1]
    tail = len(sequence.ids) - sum(s.stop - s.start - 1 for s in spans)
    places = range(image.start, image.stop) if drawn is None else [image.start + i for i in drawn]
    in_tail = np.arange(len(row.ids)) >= (tail if spans else 0)
    counted = in_tail & np.isin(masked.owners, list(places)) & (masked.inserted == 0)
    if spans and spans[0].stop <= image.start - 1:
        counted = in_tail & (masked.inserted != 1)
    weights = np.where(counted, 1.0, 0.0).astype(row.weights.dtype)
    batch = Batch.of_rows([replace(row, weights=weights)], pad_id=0)
    return -float(measured_nll(model, batch)[0][0])


def in_image(prompt, document, spans):
    start = lay_out(document, prompt.contexts, LAYOUT).main_segments[1].start
    return tuple(Span(start + a, start + b) for a, b in spans)


def whole_caption(prompt, document):
    caption = lay_out(document, prompt.contexts, LAYOUT).main_segments[0]
    return (Span(caption.start, caption.stop),)


def part_of_caption(prompt, document):
    caption = lay_out(document, prompt.contexts, LAYOUT).main_segments[0]
    return (Span(caption.start + 1, caption.stop - len(prompt.text[2:])),)


HOLE = (1, 2, 4, 5, 7, 8)
"""The right two thirds of a 3 x 3 grid."""


def infill(model, layout, given, config, **rest):
    return infill_images(model, layout, given, [range(2, 6)] * len(given), config, **rest)


def infill_box(model, layout, given, config, **rest):
    return infill_images(model, layout, given, [HOLE] * len(given), config, **rest)


def infill_rows(model, layout, given, config, **rest):
    """Two spans: what stands between them is read before either is drawn."""
    holes = [(1, 2, 7, 8)] * len(given)
    return infill_images(model, layout, given, holes, config, filling="rows", **rest)


def infill_text(model, layout, given, config, **rest):
    """The second token is written anew; at most five stand around it."""
    given = [replace(p, text=p.text[:4]) for p in given]
    return infill_captions(model, layout, given, [(1, min(2, len(p.text))) for p in given], config,
                           **rest)  # fmt: skip


TASKS = {
    sample_images: lambda prompt, document: ((), range(9)),
    sample_captions: lambda prompt, document: (whole_caption(prompt, document), None),
    infill: lambda p, d: (in_image(p, d, [(2, 6)]), range(2, 6)),
    infill_box: lambda p, d: (in_image(p, d, bridged(HOLE)), HOLE),
    infill_rows: lambda p, d: (in_image(p, d, [(1, 3), (7, 9)]), (1, 2, 7, 8)),
    infill_text: lambda p, d: (part_of_caption(replace(p, text=p.text[:4]), d), None),
}
"""What training would mask to learn the task, and which codes are drawn."""


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(guidance=3.0, top_p=0.9),
        SamplingConfig(guidance=2.0, null_lacks="contexts"),
        SamplingConfig(guidance=2.0, null_lacks="both"),
        SamplingConfig(contrastive_k=3),
        SamplingConfig(repetition_penalty=1.5, no_repeat_ngram=1),
    ],
)
def test_samples_parse_and_their_logprob_is_that_of_training(model, task, config):
    given = prompts()
    samples = task(model, LAYOUT, given, config, seeds=range(5))
    for prompt, sample in zip(given, samples, strict=True):
        assert len(sample.document.image) == 9
        assert all(0 <= code < 16 for code in sample.document.image)
        assert 1 <= len(sample.document.text) <= 6
        assert all(0 <= token < 20 for token in sample.document.text)
        spans, drawn = TASKS[task](prompt, sample.document)
        if drawn is None:
            assert sample.document.image == prompt.image
        else:
            assert sample.document.text == prompt.text
            kept = [i for i in range(9) if i not in drawn]
            assert [sample.document.image[i] for i in kept] == [prompt.image[i] for i in kept]
            assert sample.written == len(drawn)
        expected = expected_logprob(model, prompt, sample.document, spans, drawn)
        assert sample.logprob == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("lacks", ["prompt", "contexts", "both"])
def test_a_sample_does_not_depend_on_its_batch_mates(model, task, lacks):
    given = prompts(6)
    config = SamplingConfig(guidance=2.0, null_lacks=lacks)
    together = task(model, LAYOUT, given, config, seeds=range(6))
    alone = [task(model, LAYOUT, [p], config, seeds=[i])[0] for i, p in enumerate(given)]
    assert [s.document for s in together] == [s.document for s in alone]


@pytest.mark.parametrize("lacks", ["prompt", "contexts", "both"])
@pytest.mark.parametrize("task", TASKS)
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


@pytest.mark.parametrize("task", TASKS)
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


@pytest.fixture(scope="module")
def one_by_one(model):
    """Two candidates of each of four prompts, each drawn in a batch of its own."""
    config, drawn = SamplingConfig(guidance=2.0), {}
    for task in TASKS:
        asked = [(p, s) for i, p in enumerate(prompts(4)) for s in candidate_seeds(i, 2)]
        drawn[task] = [(p, s, task(model, LAYOUT, [p], config, seeds=[s])[0]) for p, s in asked]
    return drawn


@settings(max_examples=25, deadline=None)
@given(task=st.sampled_from(list(TASKS)), order=st.permutations(range(8)), size=st.integers(1, 9))
def test_a_sample_depends_on_seed_prompt_and_candidate_only(model, one_by_one, task, order, size):
    """Whatever the batch size, the order of the prompts and their mates."""
    some = [one_by_one[task][i] for i in order[: 2 + size % 7]]
    config = SamplingConfig(guidance=2.0, batch_size=size)
    mixed = task(model, LAYOUT, [p for p, _, _ in some], config, seeds=[s for _, s, _ in some])
    assert [s.document for s in mixed] == [s.document for _, _, s in some]


def test_candidates_stay_together_whatever_stands_between_them(model):
    """Six prompts of one length, three times each, two prompts a batch: each is read once."""
    d = documents(6)
    some = [Prompt(text=(i, i, i), image=d[i].image) for i in range(6)] * 3
    read = []
    hook = model.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape)))
    together = sample_images(model, LAYOUT, some, SamplingConfig(batch_size=7), seeds=range(18))
    hook.remove()
    assert sum(rows for rows, length in read if length > 1) == 6
    assert max(rows for rows, _ in read) == 6
    alone = [
        sample_images(model, LAYOUT, [p], SamplingConfig(), seeds=[i])[0]
        for i, p in enumerate(some)
    ]
    assert [s.document for s in together] == [s.document for s in alone]


def test_a_family_larger_than_a_batch_is_cut(model):
    some = [prompts(3)[2]] * 5
    seen = []
    samples = sample_images(
        model, LAYOUT, some, SamplingConfig(batch_size=2), seeds=range(5), progress=seen.append
    )
    assert seen == [2, 2, 1]
    assert len(samples) == 5


def test_known_codes_are_read_and_not_drawn(model):
    """A hole in which all codes are to be drawn is the span; its draws are the same."""
    given = prompts()
    one = infill_images(model, LAYOUT, given, [range(2, 6)] * 5, SamplingConfig(), seeds=range(5))
    rows = infill_images(
        model, LAYOUT, given, [range(2, 6)] * 5, SamplingConfig(), seeds=range(5), filling="rows"
    )
    assert one == rows
    forced = infill_images(model, LAYOUT, given, [(2, 5)] * 5, SamplingConfig(), seeds=range(5))
    assert [s.document.image[2] for s in forced] == [s.document.image[2] for s in one]
    for prompt, sample in zip(given, forced, strict=True):
        assert sample.document.image[3:5] == prompt.image[3:5]


def test_a_text_is_filled_in_where_it_was_asked(model):
    given = [replace(p, text=(1, 2, 3)) for p in prompts()]
    samples = infill_captions(
        model, LAYOUT, given, [(1, 1)] * 5, SamplingConfig(temperature=3.0), seeds=range(5)
    )
    for sample in samples:
        assert sample.document.text[0] == 1
        assert sample.document.text[-2:] == (2, 3)
        assert 4 <= len(sample.document.text) <= 6
    ends = infill_captions(
        model, LAYOUT, given, [(0, 3)] * 5, SamplingConfig(temperature=3.0), seeds=range(5)
    )
    whole = sample_captions(model, LAYOUT, given, SamplingConfig(temperature=3.0), seeds=range(5))
    assert ends == whole


def test_repetition_control_leaves_images_alone(model):
    controlled = SamplingConfig(repetition_penalty=5.0, no_repeat_ngram=1)
    for task in (sample_images, infill_box):
        plain = task(model, LAYOUT, prompts(), SamplingConfig(), seeds=range(5))
        assert task(model, LAYOUT, prompts(), controlled, seeds=range(5)) == plain


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_n_tokens_in_a_row_are_written_twice(model, n):
    config = SamplingConfig(temperature=0.01, no_repeat_ngram=n)
    for sample in sample_captions(model, LAYOUT, prompts(), config, seeds=range(5)):
        text = sample.document.text
        grams = [text[i : i + n] for i in range(len(text) - n + 1)]
        assert len(set(grams)) == len(grams)


def test_a_high_penalty_writes_each_token_once(model):
    plain = sample_captions(model, LAYOUT, prompts(), SamplingConfig(temperature=0), seeds=range(5))
    assert any(len(set(s.document.text)) < len(s.document.text) for s in plain)
    config = SamplingConfig(temperature=0, repetition_penalty=1e6)
    for sample in sample_captions(model, LAYOUT, prompts(), config, seeds=range(5)):
        assert len(set(sample.document.text)) == len(sample.document.text)


def test_what_is_kept_of_a_sampler_tells_of_repetition_only_where_it_is_on():
    assert "repetition_penalty" not in SamplingConfig().record()
    on = SamplingConfig(repetition_penalty=1.2, no_repeat_ngram=3).record()
    assert (on["repetition_penalty"], on["no_repeat_ngram"]) == (1.2, 3)
    assert SamplingConfig(**on) == SamplingConfig(repetition_penalty=1.2, no_repeat_ngram=3)


def drawn(model, given):
    def draw(rows, seeds):
        return sample_images(model, LAYOUT, [given[i] for i in rows], SamplingConfig(), seeds=seeds)

    return draw


def test_the_most_likely_candidate_wins(model):
    for chosen in best_of(drawn(model, prompts(2)), seeds=[1, 2], count=4):
        assert len({c.document.image for c in chosen.candidates}) > 1
        best = chosen.best
        assert math.isclose(max(chosen.scores), best.logprob / best.written)


def test_another_score_chooses_another_candidate(model):
    asked = []

    def score(rows, samples):
        asked.extend(rows)
        return [-sample.document.image[0] for sample in samples]

    for chosen in best_of(drawn(model, prompts(2)), seeds=[1, 2], count=6, score=score):
        assert chosen.best.document.image[0] == min(c.document.image[0] for c in chosen.candidates)
    assert asked == [0] * 6 + [1] * 6


def test_one_candidate_is_the_sample_and_more_go_on_from_it(model):
    given = prompts(2)
    one, three = (best_of(drawn(model, given), seeds=[7, 8], count=n) for n in (1, 3))
    plain = sample_images(model, LAYOUT, given, SamplingConfig(), seeds=[7, 8])
    assert [c.best.document for c in one] == [p.document for p in plain]
    assert [c.candidates[0].document for c in three] == [p.document for p in plain]
    assert candidate_seeds(7, 5)[:3] == candidate_seeds(7, 3)
    assert len(set(candidate_seeds(7, 50))) == 50


def test_prompts_without_what_the_task_needs_are_refused(model):
    with pytest.raises(ValueError, match="text"):
        sample_images(model, LAYOUT, [Prompt()], SamplingConfig(), seeds=[0])
    with pytest.raises(ValueError, match="image"):
        sample_captions(model, LAYOUT, [Prompt()], SamplingConfig(), seeds=[0])
    for hole in ((), (3, 3), (8, 9), (-1, 2)):
        with pytest.raises(ValueError, match="hole"):
            infill_images(model, LAYOUT, prompts(1), [hole], SamplingConfig(), seeds=[0])
    with pytest.raises(ValueError, match="2 sentinels"):
        infill_images(
            model, LAYOUT, prompts(1), [(0, 3, 6)], SamplingConfig(), seeds=[0], filling="rows"
        )
    full = [replace(prompts(1)[0], text=(1,) * 6)]
    with pytest.raises(ValueError, match="shorter"):
        infill_captions(model, LAYOUT, full, [(2, 2)], SamplingConfig(), seeds=[0])
    with pytest.raises(ValueError, match="outside the caption"):
        infill_captions(model, LAYOUT, full, [(2, 7)], SamplingConfig(), seeds=[0])
    with pytest.raises(ValueError, match="repetition_penalty"):
        SamplingConfig(repetition_penalty=0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_cuda_writes_what_the_cpu_writes(model, task, guidance):
    """Draws are made on the CPU from each sample's own seed; only logits come from the device."""
    config = SamplingConfig(guidance=guidance)
    here = task(model, LAYOUT, prompts(), config, seeds=range(5))
    there = task(copy.deepcopy(model).cuda(), LAYOUT, prompts(), config, seeds=range(5))
    assert [s.document for s in there] == [s.document for s in here]
