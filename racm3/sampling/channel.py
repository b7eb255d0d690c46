"""Few-shot classification the other way round: under which class is this image the likeliest?

Bayes' rule turns the question of `racm3.sampling.classify` about. A class is what its
demonstrations are, so its label (which may mean nothing) stands over a demonstration and over the
image that is asked about, ``</s> label <break> D </s> label <break> I </s>``, and what counts is
log p(I | label, D). Where all classes are equally likely beforehand, the class of the likeliest
image is the likeliest class. Noisy channels tell more than direct questions where models are small
or labels are unlike what was trained on (arXiv:2108.04106): a label is one token, an image is many.

Of k demonstrations a class is the even mixture, p(I | class) = mean over d of p(I | label, D_d).

C labels, k sets of demonstrations (`Question`).
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

__all__ = ["image_log_likelihoods", "mixture"]


def image_log_likelihoods(
    generator: Generator,
    layout: Layout,
    questions: Sequence[Question],
    labels: Sequence[Label],
    *,
    all_labels: bool = False,
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
        batch_size: Rows of one forward pass.
        progress: Called with (rows read, rows in all).

    Returns:
        For each question [k, C]: log p(image codes | label, demonstration), in nats.

    Raises:
        ValueError: As of `classify`.
    """
    checked(questions, labels, layout)
    turns = range(len(labels)) if all_labels else range(1)
    asked = [
        (question.image, shown, label)
        for question in questions
        for of_set in question.demonstrations
        for turn in turns
        for shown, label in zip(of_set, turned(labels, turn), strict=True)
    ]
    logs = np.empty(len(asked))
    rows = (_row(*one, layout) for one in asked)
    for done, nll in measured(generator, layout, rows, batch_size):
        logs[done - len(nll) : done] = -nll
        if progress is not None:
            progress(done, len(asked))
    by_set = logs.reshape(-1, len(turns), len(labels))
    values = np.logaddexp.reduce(by_set, axis=1) - np.log(len(turns))
    ends = np.cumsum([len(question.demonstrations) for question in questions])[:-1]
    return np.split(values, ends) if questions else []


def mixture(log_likelihoods: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Probability of each class by its first k demonstrations, [C]; classes alike beforehand.

    Args:
        log_likelihoods: Of one question, [at least k, C].
        k: Demonstrations, >= 1.

    Raises:
        ValueError: There are fewer, or k is below 1.
    """
    if not 1 <= k <= len(log_likelihoods):
        raise ValueError(f"Of {len(log_likelihoods)} demonstrations {k} were asked for.")
    together = np.logaddexp.reduce(log_likelihoods[:k], axis=0)
    weights = np.exp(together - together.max())
    return np.asarray(weights / weights.sum())


def _row(image: Codes, shown: Codes, label: Label, layout: Layout) -> Row:
    """One sequence with weight on the codes of the image that is asked about."""
    demonstration = DocumentTokens(text=label, image=shown)
    sequence = lay_out(DocumentTokens(text=label, image=image), [demonstration], layout)
    row = to_row(sequence, mask(sequence, [], layout.vocabulary), layout, alpha=0)
    is_code = row.is_main & (row.modality == int(Modality.IMAGE))
    return replace(row, weights=is_code.astype(np.float32))
