"""Tasks: draw an image of a caption, caption an image, fill a hole in an image.

Prompts are laid out as in training (`racm3.sequence.layout`, `racm3.objective.masking`):

* image: ``</s> contexts T <break>``, then h*w codes;
* caption: ``</s> contexts <sentinel:0> <break> I </s> <sentinel:0>``, then text up to ``<eoss>``;
* infill: ``</s> contexts T <break> I.. <sentinel:0> ..I </s> <sentinel:0>``, then the hole's codes.

The null prompt has no contexts, or masks the caption (where one is to be written: the image), or
both, by `SamplingConfig.null_lacks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from racm3.document import DocumentTokens
from racm3.generator.transformer import Generator
from racm3.sampling.decode import Continuation, Job, SamplingConfig, Source, decode
from racm3.sampling.grammar import Grammar
from racm3.sequence.batch import Modality
from racm3.sequence.layout import Layout
from racm3.sequence.places import Resume

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What a sample is drawn from."""

    contexts: tuple[DocumentTokens, ...] = ()
    """In the order fed."""
    text: tuple[int, ...] | None = None
    """Caption tokens from 0; `None` where the caption is to be written."""
    image: tuple[int, ...] | None = None
    """All h*w codes from 0 (those in a hole are not read); `None` where it is to be drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """One sample."""

    document: DocumentTokens
    """The main document, complete: what was given and what was written."""
    logprob: float
    """Sum of log p of what was written, nats, temperature 1, no guidance."""
    written: int
    """Tokens written, ``<eoss>`` included: exp(-logprob / written) is the perplexity."""


def sample_images(
    generator: Generator,
    layout: Layout,
    prompts: Sequence[Prompt],
    config: SamplingConfig,
    *,
    seeds: Sequence[int],
    progress: Progress | None = None,
) -> list[Sampled]:
    """Draws an image for each caption.

    Args:
        generator: In evaluation mode.
        layout: That it was trained with.
        prompts: With `text`.
        config: How to draw.
        seeds: One a prompt, in [0, 2**63).
        progress: Called with the number of samples finished since the last call.

    Raises:
        ValueError: A prompt has no text, or a context not the layout's number of codes.
    """
    end, hidden = layout.vocabulary.break_id, layout.vocabulary.sentinel_id(0)
    grammar = Grammar("image", layout.image_tokens)
    jobs = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        text = _required(prompt.text, "sample_images needs prompts with text")
        sources = [
            Source(ids=(*front.ids, *caption, end), num_contexts=front.num_contexts)
            for front, caption in _both(prompt, layout, config, _text(text, layout), [hidden])
        ]
        jobs.append(Job(source=sources[0], null=sources[1], grammar=grammar, seed=seed))
    written = decode(generator, layout, jobs, config, progress=progress)
    return [
        _sampled(w, tuple(p.text or ()), _codes(w, layout))
        for p, w in zip(prompts, written, strict=True)
    ]


def sample_captions(
    generator: Generator,
    layout: Layout,
    prompts: Sequence[Prompt],
    config: SamplingConfig,
    *,
    seeds: Sequence[int],
    progress: Progress | None = None,
) -> list[Sampled]:
    """Writes a caption for each image, at least one token and at most `layout.max_text_tokens`.

    Args and errors as in `sample_images`; the prompts carry `image`.
    """
    vocabulary = layout.vocabulary
    hidden, end = vocabulary.sentinel_id(0), vocabulary.document_end_id
    other = vocabulary.sentinel_id(1) if vocabulary.num_sentinels > 1 else hidden
    grammar = Grammar("text", layout.max_text_tokens)
    jobs = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        image = _required(prompt.image, "sample_captions needs prompts with an image")
        sources = [
            Source(
                ids=(*front.ids, hidden, vocabulary.break_id, *shown, end, hidden),
                num_contexts=front.num_contexts,
                resumes=(
                    Resume(modality=Modality.TEXT, document=front.num_contexts),
                    Resume(
                        modality=Modality.IMAGE,
                        index=layout.image_tokens,
                        document=front.num_contexts,
                    ),
                ),
            )
            for front, shown in _both(prompt, layout, config, _image(image, layout), [other])
        ]
        jobs.append(Job(source=sources[0], null=sources[1], grammar=grammar, seed=seed))
    written = decode(generator, layout, jobs, config, progress=progress)
    first = vocabulary.text_range.start
    return [
        _sampled(w, tuple(i - first for i in w.ids[:-1]), tuple(p.image or ()))
        for p, w in zip(prompts, written, strict=True)
    ]


def infill_images(
    generator: Generator,
    layout: Layout,
    prompts: Sequence[Prompt],
    holes: Sequence[tuple[int, int]],
    config: SamplingConfig,
    *,
    seeds: Sequence[int],
    progress: Progress | None = None,
) -> list[Sampled]:
    """Fills codes [start, stop) of each image, row-major, given the rest and the caption.

    Args:
        generator: In evaluation mode.
        layout: That it was trained with.
        prompts: With `text` and `image`.
        holes: Half-open, not empty, one a prompt.
        config: How to draw.
        seeds: One a prompt.
        progress: As in `sample_images`.

    Raises:
        ValueError: A part is missing, or a hole is empty or outside the image.
    """
    vocabulary = layout.vocabulary
    hidden = vocabulary.sentinel_id(0)
    jobs = []
    for prompt, (start, stop), seed in zip(prompts, holes, seeds, strict=True):
        if not 0 <= start < stop <= layout.image_tokens:
            raise ValueError(f"The hole [{start}, {stop}) is empty or outside the image.")
        text = _required(prompt.text, "infill_images needs prompts with text")
        image = _image(_required(prompt.image, "infill_images needs prompts with an image"), layout)
        rest = (*image[:start], hidden, *image[stop:], vocabulary.document_end_id, hidden)
        sources = [
            Source(
                ids=(*front.ids, *caption, vocabulary.break_id, *rest),
                num_contexts=front.num_contexts,
                resumes=(Resume(modality=Modality.IMAGE, index=stop, document=front.num_contexts),),
            )
            for front, caption in _both(prompt, layout, config, _text(text, layout), [])
        ]
        grammar = Grammar("image", stop - start)
        jobs.append(Job(source=sources[0], null=sources[1], grammar=grammar, seed=seed))
    written = decode(generator, layout, jobs, config, progress=progress)
    return [
        _sampled(
            w, tuple(p.text or ()), (*(p.image or ())[:a], *_codes(w, layout), *(p.image or ())[b:])
        )
        for p, (a, b), w in zip(prompts, holes, written, strict=True)
    ]


def candidate_seeds(seed: int, count: int) -> list[int]:
    """Seeds of the candidates of one prompt: the first n do not depend on `count`."""
    return [
        int(np.random.SeedSequence((seed, i)).generate_state(1, np.uint64)[0]) >> 1
        for i in range(count)
    ]


def own_likelihood(samples: Sequence[Sampled]) -> list[float]:
    """Scores candidates by mean log p a token: the lowest perplexity wins (RA-CM3's captions)."""
    return [sample.logprob / sample.written for sample in samples]


def best_of(
    draw: Callable[[Sequence[Prompt], Sequence[int]], list[Sampled]],
    prompts: Sequence[Prompt],
    *,
    seeds: Sequence[int],
    count: int,
    score: Callable[[Sequence[Sampled]], Sequence[float]] = own_likelihood,
) -> list[tuple[Sampled, list[Sampled], list[float]]]:
    """Draws `count` candidates a prompt and keeps the one with the highest score.

    Args:
        draw: One of this module's tasks with everything but prompts and seeds given.
        prompts: What is drawn from.
        seeds: One a prompt.
        count: Candidates, >= 1.
        score: Of all candidates of one prompt (CLIP's for images).

    Returns:
        The best, all candidates and their scores, for each prompt. Ties go to the first.
    """
    every = [prompt for prompt in prompts for _ in range(count)]
    drawn = draw(every, [s for seed in seeds for s in candidate_seeds(seed, count)])
    results = []
    for start in range(0, len(drawn), count):
        candidates = drawn[start : start + count]
        scores = [float(value) for value in score(candidates)]
        results.append((candidates[int(np.argmax(scores))], candidates, scores))
    return results


def _required(value: tuple[int, ...] | None, message: str) -> tuple[int, ...]:
    if value is None:
        raise ValueError(f"{message}.")
    return value


def _text(text: Sequence[int], layout: Layout) -> list[int]:
    return [layout.vocabulary.to_text_id(token) for token in text[: layout.max_text_tokens]]


def _image(image: Sequence[int], layout: Layout) -> list[int]:
    if len(image) != layout.image_tokens:
        raise ValueError(f"An image has {len(image)} codes, the layout {layout.image_tokens}.")
    return [layout.vocabulary.to_image_id(code) for code in image]


class _Front(NamedTuple):
    """What stands before the main document."""

    ids: list[int]
    num_contexts: int


def _both(
    prompt: Prompt, layout: Layout, config: SamplingConfig, shown: list[int], masked: list[int]
) -> tuple[tuple[_Front, list[int]], tuple[_Front, list[int]]]:
    """What is read for the prompt, and for its null prompt."""
    lacks, front = config.null_lacks, _front(prompt.contexts, layout)
    null = front if lacks == "prompt" else _front((), layout)
    return (front, shown), (null, shown if lacks == "contexts" else masked)


def _front(contexts: Sequence[DocumentTokens], layout: Layout) -> _Front:
    ids, end = [layout.vocabulary.document_end_id], layout.vocabulary.break_id
    for document in contexts:
        image = _image(document.image, layout) if document.image else []
        ids += [*_text(document.text, layout), end, *image, end]
    return _Front(ids, len(contexts))


def _codes(written: Continuation, layout: Layout) -> tuple[int, ...]:
    return tuple(layout.vocabulary.from_image_id(i) for i in written.ids)


def _sampled(written: Continuation, text: tuple[int, ...], image: tuple[int, ...]) -> Sampled:
    return Sampled(
        document=DocumentTokens(text=text, image=image),
        logprob=written.logprob,
        written=len(written.ids),
    )
