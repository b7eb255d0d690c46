"""One- and few-shot classification: which label would the generator write under this image?

A demonstration is a document, an image with the label of its class as caption, put in front as a
context. The caption of the image that is asked about is infilled as in `racm3.sampling.tasks`:
``</s> demonstrations <sentinel:0> <break> I </s> <sentinel:0>``, then a label and ``<eoss>``. The
label of the greatest probability wins. Labels that mean nothing leave the demonstrations as the
only thing that can tell (RA-CM3, arXiv:2211.12561, "animal X" and "animal Y").

One sequence holds one demonstration of each class. Of k demonstrations the k sets are read one by
one and their probabilities averaged, as in the paper, whose sequence has no room for more either.
The other way round, which image a label makes likely: `racm3.sampling.channel`.

C labels, k sets of demonstrations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from racm3.document import DocumentTokens
from racm3.generator.transformer import Generator
from racm3.objective.masking import mask, to_row
from racm3.objective.spans import Span
from racm3.sequence.batch import Batch, Row
from racm3.sequence.layout import Layout, lay_out
from racm3.training.generator import measured_nll

__all__ = [
    "ClassifyConfig",
    "Question",
    "checked",
    "classify",
    "ensemble",
    "measured",
    "turned",
]

Codes = tuple[int, ...]
Label = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyConfig:
    """How the answer is read off the generator."""

    all_orders: bool = True
    """Average over the orders in which a set's demonstrations stand (each class once in every
    place), so that where a class stands cannot decide. False: in the order of the labels."""
    all_labels: bool = False
    """Average over which label stands for which class (each label once for every class), against a
    taste for one of the labels. For labels that mean nothing."""
    calibrate: bool = False
    """Divide a label's probability by what it is with the image hidden, against a taste for one of
    the labels (contextual calibration, arXiv:2102.09690). RA-CM3's paper does not."""
    batch_size: int = 32
    """Rows of one forward pass."""

    def __post_init__(self) -> None:
        """Checks the range.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        if self.batch_size < 1:
            raise ValueError("ClassifyConfig.batch_size must be at least 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """An image and what is shown of each class."""

    image: Codes
    """The h*w codes of the image that is asked about, from 0."""
    demonstrations: tuple[tuple[Codes, ...], ...]
    """k sets, each of one image a class, in the order of the labels."""


def classify(
    generator: Generator,
    layout: Layout,
    questions: Sequence[Question],
    labels: Sequence[Label],
    config: ClassifyConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[NDArray[np.float64]]:
    """What each set of demonstrations says of each question.

    A generator that was trained without contexts reads the same sequence. It has no slots for
    them: demonstrations then stand in the last slot that it has, that of the main document.

    Args:
        generator: In evaluation mode.
        layout: That it was trained with.
        questions: In any order; each may have another k.
        labels: Text tokens from 0 of each class's label (of its first, with `all_labels`); two or
            more, all different.
        config: How.
        progress: Called with (rows read, rows in all).

    Returns:
        For each question [k, C]: the probability of each class by its label, among the classes,
        given one set.

    Raises:
        ValueError: A label is empty, too long or there twice; a set has not one image a class, or
            an image not the layout's number of codes.
    """
    checked(questions, labels, layout)
    starts = range(len(labels)) if config.all_orders else range(1)
    turns = range(len(labels)) if config.all_labels else range(1)
    asked = [
        (question.image, tuple(zip(turned(labels, turn), shown, strict=True)), start)
        for question in questions
        for shown in question.demonstrations
        for turn in turns
        for start in starts
    ]
    total = len(asked) * len(labels) * (1 + config.calibrate)
    rows = (
        _row(image, turned(pairs, start), label, layout, hidden=hidden)
        for image, pairs, start in asked
        for label, _ in pairs
        for hidden in ((False, True) if config.calibrate else (False,))
    )
    logs = np.empty(total)
    for done, nll in measured(generator, layout, rows, config.batch_size):
        logs[done - len(nll) : done] = -nll
        if progress is not None:
            progress(done, total)
    values = logs.reshape(-1, len(labels), 1 + config.calibrate)
    values = values[..., 0] - values[..., 1] if config.calibrate else values[..., 0]
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    shares = weights / weights.sum(axis=1, keepdims=True)
    by_set = shares.reshape(-1, len(turns) * len(starts), len(labels)).mean(axis=1)
    ends = np.cumsum([len(question.demonstrations) for question in questions])[:-1]
    return np.split(by_set, ends) if questions else []


def ensemble(probabilities: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Probability of each class by the first k sets together, [C]: the mean of theirs.

    Args:
        probabilities: Of one question, [at least k, C].
        k: Sets, >= 1.

    Raises:
        ValueError: There are fewer sets, or k is below 1.
    """
    if not 1 <= k <= len(probabilities):
        raise ValueError(f"Of {len(probabilities)} sets of demonstrations {k} were asked for.")
    return np.asarray(probabilities[:k].mean(axis=0))


def turned(items: Sequence[T], by: int) -> tuple[T, ...]:
    """The items from number `by` on, then those before it."""
    return (*items[by:], *items[:by])


def _row(
    image: Codes,
    pairs: Sequence[tuple[Label, Codes]],
    label: Label,
    layout: Layout,
    *,
    hidden: bool,
) -> Row:
    """One sequence with weight on the label and its ``<eoss>``; `hidden`: without the image.

    What is hidden is masked; its span would follow the label in the tail, and is left out.
    """
    shown = [DocumentTokens(text=text, image=codes) for text, codes in pairs]
    sequence = lay_out(DocumentTokens(text=label, image=image), shown, layout)
    caption, picture = sequence.main_segments
    spans = [Span(caption.start, caption.stop)]
    if hidden:
        spans.append(Span(picture.start, picture.stop))
    row = to_row(sequence, mask(sequence, spans, layout.vocabulary), layout, alpha=0)
    stop = len(row.ids) - (layout.image_tokens + 2 if hidden else 0)
    weights = np.zeros(stop, dtype=np.float32)
    weights[stop - len(label) - 1 :] = 1
    return Row(
        ids=row.ids[:stop],
        weights=weights,
        is_main=row.is_main[:stop],
        modality=row.modality[:stop],
        places=row.places[:stop],
        next_places=row.next_places[:stop],
        slots=row.slots[:stop],
    )


def measured(
    generator: Generator, layout: Layout, rows: Iterator[Row], batch_size: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Reads rows in batches.

    Returns:
        (Rows read so far, NLL in nats of the rows just read), batch by batch.
    """
    done = 0
    while part := list(islice(rows, batch_size)):
        batch = Batch.of_rows(part, pad_id=layout.vocabulary.pad_id)
        done += len(part)
        yield done, measured_nll(generator, batch)[0].numpy()


def checked(questions: Sequence[Question], labels: Sequence[Label], layout: Layout) -> None:
    """Refuses what does not fit together.

    Raises:
        ValueError: As of `classify`.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError("Classification needs two labels or more, all different.")
    for label in labels:
        if not 1 <= len(label) <= layout.max_text_tokens:
            raise ValueError(
                f"A label has {len(label)} tokens; it must have 1 to {layout.max_text_tokens}."
            )
    for question in questions:
        images = [question.image, *(one for shown in question.demonstrations for one in shown)]
        wrong = next((n for n in map(len, images) if n != layout.image_tokens), None)
        if wrong is not None:
            raise ValueError(f"An image has {wrong} codes, the layout {layout.image_tokens}.")
        if any(len(shown) != len(labels) for shown in question.demonstrations):
            raise ValueError(f"A set of demonstrations needs one image for each of {len(labels)}.")
