"""Tasks: draw an image of a caption, caption an image, fill a hole in an image or in a caption.

Prompts are laid out as in training (`racm3.sequence.layout`, `racm3.objective.masking`):

* image: ``</s> contexts T <break>``, then h*w codes;
* caption: ``</s> contexts <sentinel:0> <break> I </s> <sentinel:0>``, then text up to ``<eoss>``;
* infill: ``</s> contexts T <break> I.. <sentinel:0> ..I </s> <sentinel:0>``, then the codes of the
  span; where there are several, ``<eoss> <sentinel:1>``, the codes of the next, and so on;
* infill of a caption: ``</s> contexts T.. <sentinel:0> ..T <break> I </s> <sentinel:0>``, then text
  up to ``<eoss>``.

An edit is an infill, or a drawing of the whole image, under a context that somebody supplied;
generation from demonstrations is a drawing under contexts that somebody picked.

The null prompt has no contexts, or masks the caption (where one is to be written: the image), or
both, by `SamplingConfig.null_lacks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from racm3.document import DocumentTokens
from racm3.generator.transformer import Generator
from racm3.sampling.decode import Continuation, Job, SamplingConfig, Source, decode
from racm3.sampling.grammar import Grammar
from racm3.sampling.holes import Span, bridged, row_spans
from racm3.sequence.batch import Modality
from racm3.sequence.layout import Layout
from racm3.sequence.places import Resume

Progress = Callable[[int], None]

Filling = Literal["bridged", "rows"]
"""How a hole of several rows is filled: `racm3.sampling.holes`."""


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
    """Tokens drawn, ``<eoss>`` included: exp(-logprob / written) is the perplexity."""


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
                resumes=_in_caption(front, layout),
            )
            for front, shown in _both(prompt, layout, config, _image(image, layout), [other])
        ]
        jobs.append(Job(source=sources[0], null=sources[1], grammar=grammar, seed=seed))
    written = decode(generator, layout, jobs, config, progress=progress)
    return [
        _sampled(w, _tokens(w, layout), tuple(p.image or ()))
        for p, w in zip(prompts, written, strict=True)
    ]


def infill_images(
    generator: Generator,
    layout: Layout,
    prompts: Sequence[Prompt],
    holes: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    seeds: Sequence[int],
    filling: Filling = "bridged",
    progress: Progress | None = None,
) -> list[Sampled]:
    """Fills some codes of each image, given the rest and the caption.

    Args:
        generator: In evaluation mode.
        layout: That it was trained with.
        prompts: With `text` and `image`.
        holes: Grid indices to be drawn, ascending, one a prompt; `Box.codes` gives those of a box.
        config: How to draw.
        seeds: One a prompt.
        filling: As one span, or as one a row.
        progress: As in `sample_images`.

    Raises:
        ValueError: A part is missing, or a hole is empty, outside the image, or has more rows than
            there are sentinels.
    """
    jobs = []
    for prompt, hole, seed in zip(prompts, holes, seeds, strict=True):
        text = _required(prompt.text, "infill_images needs prompts with text")
        image = _image(_required(prompt.image, "infill_images needs prompts with an image"), layout)
        if hole and not 0 <= hole[0] <= hole[-1] < len(image):
            raise ValueError(f"The hole [{hole[0]}, {hole[-1] + 1}) lies outside the image.")
        spans = _spans(hole, filling, layout)
        sources = [
            Source(
                ids=(
                    *front.ids,
                    *caption,
                    layout.vocabulary.break_id,
                    *_around(image, spans, layout),
                ),
                num_contexts=front.num_contexts,
                resumes=tuple(
                    Resume(modality=Modality.IMAGE, index=stop, document=front.num_contexts)
                    for _, stop in spans
                ),
            )
            for front, caption in _both(prompt, layout, config, _text(text, layout), [])
        ]
        script = _script(image, spans, hole, layout)
        grammar = Grammar("image", len(script), script=script)
        jobs.append(Job(source=sources[0], null=sources[1], grammar=grammar, seed=seed))
    written = decode(generator, layout, jobs, config, progress=progress)
    return [
        _sampled(w, tuple(prompt.text or ()), _filled(prompt.image or (), hole, w, job, layout))
        for prompt, hole, job, w in zip(prompts, holes, jobs, written, strict=True)
    ]


def infill_captions(
    generator: Generator,
    layout: Layout,
    prompts: Sequence[Prompt],
    holes: Sequence[tuple[int, int]],
    config: SamplingConfig,
    *,
    seeds: Sequence[int],
    progress: Progress | None = None,
) -> list[Sampled]:
    """Writes tokens [start, stop) of each caption anew, given the rest and the image.

    What is written may be shorter or longer than what stood there, at least one token and as many
    as `layout.max_text_tokens` leaves room for.

    Args:
        generator: In evaluation mode.
        layout: That it was trained with.
        prompts: With `text` (what stands in a hole is not read) and `image`.
        holes: Half-open, one a prompt; an empty one is a place to write at.
        config: How to draw.
        seeds: One a prompt.
        progress: As in `sample_images`.

    Raises:
        ValueError: A part is missing, a hole lies outside its caption, or a caption leaves no room.
    """
    vocabulary = layout.vocabulary
    hidden, end = vocabulary.sentinel_id(0), vocabulary.document_end_id
    other = vocabulary.sentinel_id(1) if vocabulary.num_sentinels > 1 else hidden
    jobs, kept = [], []
    for prompt, (start, stop), seed in zip(prompts, holes, seeds, strict=True):
        text = _required(prompt.text, "infill_captions needs prompts with text")
        image = _required(prompt.image, "infill_captions needs prompts with an image")
        if not 0 <= start <= stop <= len(text):
            raise ValueError(f"The hole [{start}, {stop}) lies outside the caption.")
        before, after = text[:start], text[stop:]
        room = layout.max_text_tokens - len(before) - len(after)
        if room < 1:
            raise ValueError(
                f"The caption around the hole has {len(before) + len(after)} tokens and a caption "
                f"{layout.max_text_tokens} at most: give a shorter one."
            )
        shown = [*_text(before, layout), hidden, *_text(after, layout), vocabulary.break_id]
        sources = [
            Source(
                ids=(*front.ids, *shown, *codes, end, hidden),
                num_contexts=front.num_contexts,
                resumes=_in_caption(front, layout),
            )
            for front, codes in _both(prompt, layout, config, _image(image, layout), [other])
        ]
        grammar = Grammar("text", room)
        jobs.append(Job(source=sources[0], null=sources[1], grammar=grammar, seed=seed))
        kept.append((before, after))
    written = decode(generator, layout, jobs, config, progress=progress)
    return [
        _sampled(w, (*before, *_tokens(w, layout), *after), tuple(prompt.image or ()))
        for prompt, (before, after), w in zip(prompts, kept, written, strict=True)
    ]


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


def _in_caption(front: _Front, layout: Layout) -> tuple[Resume, Resume]:
    """After a sentinel in the caption it goes on; after one in place of the image comes its end."""
    return (
        Resume(modality=Modality.TEXT, document=front.num_contexts),
        Resume(modality=Modality.IMAGE, index=layout.image_tokens, document=front.num_contexts),
    )


def _spans(hole: Sequence[int], filling: Filling, layout: Layout) -> list[Span]:
    if filling == "bridged":
        return bridged(hole)
    return row_spans(hole, sentinels=layout.vocabulary.num_sentinels)


def _around(image: Sequence[int], spans: Sequence[Span], layout: Layout) -> list[int]:
    """An image with a sentinel for each span, its end, and the sentinel of the first span."""
    ids: list[int] = []
    position = 0
    for index, (start, stop) in enumerate(spans):
        ids += [*image[position:start], layout.vocabulary.sentinel_id(index)]
        position = stop
    end, first = layout.vocabulary.document_end_id, layout.vocabulary.sentinel_id(0)
    return [*ids, *image[position:], end, first]


def _script(
    image: Sequence[int], spans: Sequence[Span], hole: Sequence[int], layout: Layout
) -> tuple[int | None, ...]:
    """What is known of the tail: codes beside the hole, and what stands between two spans."""
    vocabulary, drawn = layout.vocabulary, frozenset(hole)
    script: list[int | None] = []
    for index, (start, stop) in enumerate(spans):
        if index:
            script += [vocabulary.eoss_id, vocabulary.sentinel_id(index)]
        script += [None if i in drawn else image[i] for i in range(start, stop)]
    return tuple(script)


def _filled(
    image: Sequence[int], hole: Sequence[int], written: Continuation, job: Job, layout: Layout
) -> tuple[int, ...]:
    """The codes of an image with what was drawn in its hole."""
    drawn = [i for i, known in zip(written.ids, job.grammar.script, strict=True) if known is None]
    codes = list(image)
    for place, token_id in zip(hole, drawn, strict=True):
        codes[place] = layout.vocabulary.from_image_id(token_id)
    return tuple(codes)


def _codes(written: Continuation, layout: Layout) -> tuple[int, ...]:
    return tuple(layout.vocabulary.from_image_id(i) for i in written.ids)


def _tokens(written: Continuation, layout: Layout) -> tuple[int, ...]:
    """Text tokens from 0, without ``<eoss>``."""
    return tuple(layout.vocabulary.from_text_id(i) for i in written.ids[:-1])


def _sampled(written: Continuation, text: tuple[int, ...], image: tuple[int, ...]) -> Sampled:
    return Sampled(
        document=DocumentTokens(text=text, image=image),
        logprob=written.logprob,
        written=written.drawn,
    )
