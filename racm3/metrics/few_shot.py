"""Trials of few-shot classification, and the accuracy over them.

A trial asks of which of two categories an image is, given k demonstrations of each. Its 2k + 1
images show different concepts, so that no image is told by another tone of itself. What is shown
may come from elsewhere than what is asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from racm3.metrics.bootstrap import Resampling, with_interval
from racm3.metrics.score import Score, mean_score

__all__ = [
    "Member",
    "Trial",
    "categories_of",
    "draw_trials",
    "few_shot_accuracy",
    "few_shot_gain",
    "trial_accuracy",
]

_PAIRS, _TRIAL = 11, 12
"""Keep the random draws of the two purposes apart."""

By = Mapping[str, Mapping[str, Sequence[str]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A document that can be asked about, or shown."""

    document_id: str
    category: str
    concept: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One question; ids of documents."""

    classes: tuple[str, str]
    """The categories, in the order of the labels."""
    asked: str
    truth: int
    """Index of the class that the asked document is of."""
    demonstrations: tuple[tuple[str, str], ...]
    """k pairs, in the order of the classes."""
    cluster: str
    """Concept of the asked document: what the bootstrap resamples."""


def categories_of(
    members: Sequence[Member], k: int, *, shown: Sequence[Member] | None = None
) -> list[str]:
    """Categories that k demonstrations and one more can be taken from, sorted.

    Args:
        members: What may be asked, and shown where nothing else is.
        k: Demonstrations of each class, >= 1.
        shown: What may be shown; None: the members.
    """
    asked, others = _pools(members, shown)
    return sorted(name for name in asked if len(others.get(name, ())) > k)


def draw_trials(
    members: Sequence[Member],
    *,
    k: int,
    count: int,
    seed: int,
    shown: Sequence[Member] | None = None,
) -> list[Trial]:
    """Trials of two categories each, evenly over the pairs of categories that are large enough.

    Trial i depends on the members, k, the seed and i: more trials are the same ones and more. Which
    category gets the first label is drawn; the truth is the first label in every second trial, so
    that whoever always names one label is right in half of them.

    Args:
        members: What may be asked, and shown where nothing else is.
        k: Demonstrations of each class, >= 1.
        count: Trials.
        seed: >= 0.
        shown: What may be shown; None: the members.

    Raises:
        ValueError: Fewer than two categories have more than k concepts to be shown.
    """
    pools = _pools(members, shown)
    pairs = list(combinations(categories_of(members, k, shown=shown), 2))
    if not pairs:
        raise ValueError(f"Fewer than two categories have more than {k} concepts.")
    order = np.random.default_rng([seed, _PAIRS]).permutation(len(pairs))
    trials = []
    for index in range(count):
        rng = np.random.default_rng([seed, _TRIAL, k, index])
        pair = pairs[int(order[index % len(pairs)])]
        first = int(rng.integers(2))
        trials.append(_trial(*pools, (pair[first], pair[1 - first]), index % 2, k, rng))
    return trials


def trial_accuracy(probabilities: NDArray[np.float64], truth: Sequence[int]) -> NDArray[np.float64]:
    """1 where the true label has the greatest probability, 0 where not, the share of a tie, [n].

    Args:
        probabilities: [n, C].
        truth: Index of the true label of each, n of them.
    """
    best = probabilities == probabilities.max(axis=1, keepdims=True)
    right = best[np.arange(len(truth)), np.asarray(truth, dtype=np.int64)]
    return np.asarray(right / best.sum(axis=1), dtype=np.float64)


def few_shot_accuracy(
    values: NDArray[np.float64],
    resampling: Resampling,
    *,
    protocol: str,
    name: str = "few_shot_accuracy",
    reference: str | None = None,
) -> Score:
    """Mean of `trial_accuracy`, with a bootstrap interval over concepts; chance is 0.5.

    Args:
        values: Of each trial, [n].
        resampling: Of the same trials, by the concept of the document that is asked about.
        protocol: How it was measured.
        name: Of the metric, which differs where the question does.
        reference: See `Score`.
    """
    score = mean_score(
        values.tolist(),
        name=name,
        unit="fraction",
        higher_is_better=True,
        protocol=protocol,
        reference=reference,
    )
    return with_interval(score, values, resampling)


def few_shot_gain(
    ours: NDArray[np.float64],
    base: NDArray[np.float64],
    resampling: Resampling,
    *,
    protocol: str,
    name: str = "few_shot_gain",
) -> Score:
    """Accuracy of one model minus that of another in the same trials; see `few_shot_accuracy`."""
    score = mean_score(
        (ours - base).tolist(),
        name=name,
        unit="fraction",
        higher_is_better=True,
        protocol=protocol,
    )
    return with_interval(score, ours - base, resampling)


def _pools(members: Sequence[Member], shown: Sequence[Member] | None) -> tuple[By, By]:
    """What may be asked and what may be shown; one and the same where nothing else is shown."""
    categories: dict[str, set[str]] = defaultdict(set)
    for one in (*members, *(shown or ())):
        categories[one.concept].add(one.category)
    asked = _grouped(members, categories)
    return asked, asked if shown is None else _grouped(shown, categories)


def _grouped(members: Sequence[Member], categories: Mapping[str, Set[str]]) -> By:
    """Documents by category and concept; a concept of two categories is in neither."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(members, key=lambda one: one.document_id):
        if len(categories[one.concept]) == 1:
            found[one.category][one.concept].append(one.document_id)
    return {name: dict(concepts) for name, concepts in found.items()}


def _trial(
    asked: By, shown: By, classes: tuple[str, str], truth: int, k: int, rng: np.random.Generator
) -> Trial:
    drawn = [_concepts(asked[name], shown[name], k, rng) for name in classes]
    documents = [
        [
            _one((shown if place < k else asked)[name][concept], rng)
            for place, concept in enumerate(concepts)
        ]
        for name, concepts in zip(classes, drawn, strict=True)
    ]
    return Trial(
        classes=classes,
        asked=documents[truth][k],
        truth=truth,
        demonstrations=tuple(zip(documents[0][:k], documents[1][:k], strict=True)),
        cluster=drawn[truth][k],
    )


def _concepts(
    asked: Mapping[str, Sequence[str]],
    shown: Mapping[str, Sequence[str]],
    k: int,
    rng: np.random.Generator,
) -> list[str]:
    """K that are shown and, after them, one that is asked; all different."""
    if asked is shown:
        concepts = sorted(shown)
        return [concepts[int(place)] for place in rng.permutation(len(concepts))[: k + 1]]
    one = sorted(asked)[int(rng.integers(len(asked)))]
    others = sorted(set(shown) - {one})
    return [*(others[int(place)] for place in rng.permutation(len(others))[:k]), one]


def _one(ids: Sequence[str], rng: np.random.Generator) -> str:
    return ids[int(rng.integers(len(ids)))]
