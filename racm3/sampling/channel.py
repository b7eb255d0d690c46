"""Few-shot classification the other way round: under which class is this image the likeliest?

Bayes' rule turns the question of `racm3.sampling.classify` about. A class is what its
demonstrations are, so its label (which may mean nothing) stands over a demonstration and over the
image that is asked about, ``</s> label <break> D </s> label <break> I </s>``, and what counts is
log p(I | label, D). Where all classes are equally likely beforehand, the class of the likeliest
image is the likeliest class. Noisy channels tell more than direct questions where models are small
or labels are unlike what was trained on (arXiv:2108.04106): a label is one token, an image is many.

One sequence holds demonstrations of one class, so it may hold as many as the generator reads
contexts (`together`), each a document of the label, where `classify` has room for one a class.

Of k sets of demonstrations either every sequence says which class it is by itself (`shares`) and
what they say is averaged, as the paper averages its own (`racm3.sampling.classify.ensemble`); or a
class is the even mixture of its demonstrations, p(I | class) = mean over d of p(I | label, D_d)
(`mixture`). An image has many codes, so the likelihoods after two demonstrations differ by orders
of magnitude: the mixture hears the one nearest demonstration, the average counts the sequences.

C labels, k sets of demonstrations (`Question`), n sequences a class, ceil(k / together).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from racm3.document import DocumentTokens
from racm3.generator.transformer import Generator
from racm3.objective.masking import mask, to_row
from racm3.sampling.classify import Codes, Label, Question, checked, measured, turned
from racm3.sequence.batch import Modality, Row
from racm3.sequence.layout import Layout, lay_out

__all__ = ["image_log_likelihoods", "mixture", "shares"]


def image_log_likelihoods(
    generator: Generator,
    layout: Layout,
    questions: Sequence[Question],
    labels: Sequence[Label],
    *,
    all_labels: bool = False,
    together: int = 1,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[NDArray[np.float64]]:
    """How likely each demonstration, of each class, makes the image that is asked about.

    Args:
        generator: In evaluation mode. One that was trained without contexts reads the same
            sequence, see `racm3.sampling.classify.classify`.
        layout: That it was trained with.
        questions: In any order; each may have another k.
        labels: As of `classify`.
        all_labels: Average the likelihood over the labels, each class under each, against a taste
            for pictures that a label goes with.
        together: Demonstrations of a class in one sequence, the first sets first; the last sequence
            may have fewer. At least 1.
        batch_size: Rows of one forward pass.
        progress: Called with (rows read, rows in all).

    Returns:
        For each question [n, C]: log p(image codes | label, demonstrations), in nats.

    Raises:
        ValueError: As of `classify`, or `together` is below 1.
    """
    checked(questions, labels, layout)
    if together < 1:
        raise ValueError(f"together is {together}; it must be at least 1.")
    turns = range(len(labels)) if all_labels else range(1)
    by_class = [_by_class(question, together) for question in questions]
    asked = [
        (question.image, shown, label)
        for question, sequences in zip(questions, by_class, strict=True)
        for of_class in sequences
        for turn in turns
        for shown, label in zip(of_class, turned(labels, turn), strict=True)
    ]
    logs = np.empty(len(asked))
    rows = (_row(*one, layout) for one in asked)
    for done, nll in measured(generator, layout, rows, batch_size):
        logs[done - len(nll) : done] = -nll
        if progress is not None:
            progress(done, len(asked))
    by_set = logs.reshape(-1, len(turns), len(labels))
    values = np.logaddexp.reduce(by_set, axis=1) - np.log(len(turns))
    ends = np.cumsum([len(sequences) for sequences in by_class])[:-1]
    return np.split(values, ends) if questions else []


def shares(log_likelihoods: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of each class by each set of demonstrations alone; classes alike beforehand.

    Args:
        log_likelihoods: Of one question, [k, C].

    Returns:
        [k, C], each row adding up to 1.
    """
    weights = np.exp(log_likelihoods - log_likelihoods.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def mixture(log_likelihoods: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Probability of each class, the even mixture of its first k demonstrations, [C].

    Args:
        log_likelihoods: Of one question, [at least k, C].
        k: Demonstrations, >= 1.

    Raises:
        ValueError: There are fewer, or k is below 1.
    """
    if not 1 <= k <= len(log_likelihoods):
        raise ValueError(f"Of {len(log_likelihoods)} demonstrations {k} were asked for.")
    return shares(np.logaddexp.reduce(log_likelihoods[:k], axis=0))


def _by_class(question: Question, together: int) -> list[tuple[tuple[Codes, ...], ...]]:
    """What one sequence of each class shows, [n][C]."""
    shown = question.demonstrations
    return [
        tuple(zip(*shown[start : start + together], strict=True))
        for start in range(0, len(shown), together)
    ]


def _row(image: Codes, shown: Sequence[Codes], label: Label, layout: Layout) -> Row:
    """One sequence with weight on the codes of the image that is asked about."""
    demonstrations = [DocumentTokens(text=label, image=one) for one in shown]
    sequence = lay_out(DocumentTokens(text=label, image=image), demonstrations, layout)
    row = to_row(sequence, mask(sequence, [], layout.vocabulary), layout, alpha=0)
    is_code = row.is_main & (row.modality == int(Modality.IMAGE))
    return replace(row, weights=is_code.astype(np.float32))
