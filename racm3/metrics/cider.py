r"""CIDEr: how captions agree with references by tf-idf weighted n-grams (arXiv:1411.5726).

Our own implementation: for n = 1..4, cosine of tf-idf vectors, mean over references, mean over n,
times 10; document frequency counts the images whose references hold the n-gram, idf is
log(images) - log(max(1, frequency)). What COCO tables call CIDEr is its variant CIDEr-D (clipped
counts, a penalty on other lengths): our default.
Protocol: lower-cased, every character but letters, digits and marks is a space, no stemming, where
the usual scorer runs a Java tokenizer first.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from racm3.metrics.score import Score, mean_score

LARGEST_N = 4
"""n-grams of 1..4 words."""
LENGTH_SIGMA = 6.0
"""Width, in words, of CIDEr-D's penalty on a different length."""

Ngram = tuple[str, ...]


def words_of(caption: str) -> list[str]:
    """Lower-cases, replaces all but letters, digits and marks by spaces, and splits."""
    kept = (c if unicodedata.category(c)[0] in "LNM" else " " for c in caption.lower())
    return "".join(kept).split()


def cider(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    variant: Literal["cider", "cider-d"] = "cider-d",
    reference: str | None = None,
) -> Score:
    """Scores captions against their references, times 100 as papers print it.

    Args:
        captions: One an image, n of them.
        references: For each image its reference captions, at least one.
        variant: ``cider-d`` clips counts to the reference's and damps other lengths (what COCO
            tables print); ``cider`` is the plain cosine.
        reference: A published number, for the score.

    Returns:
        The corpus score, 0 and up; 100 x the mean of `cider_values`.

    Raises:
        ValueError: Lengths differ, there are none, or an image has no reference.
    """
    values = cider_values(captions, references, variant=variant)
    return mean_score(
        [100.0 * value for value in values],
        name="cider",
        unit="",
        higher_is_better=True,
        reference=reference,
        protocol=f"{variant} x 100, n = 1..4, document frequencies from these references, "
        "lower-cased, punctuation stripped (no Java tokenizer)",
    )


def cider_values(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    variant: Literal["cider", "cider-d"] = "cider-d",
) -> list[float]:
    """Returns the score of each caption, in 0..10; arguments and errors as of `cider`."""
    if len(captions) != len(references) or not captions:
        raise ValueError(
            f"CIDEr needs one set of references a caption, not {len(references)} for "
            f"{len(captions)}."
        )
    if not all(references):
        raise ValueError("CIDEr: an image has no reference caption.")
    counted = [[_ngrams(words_of(text)) for text in texts] for texts in references]
    frequency: Counter[Ngram] = Counter()
    for texts in counted:
        frequency.update({gram for counts in texts for gram in counts})
    log_images = math.log(len(references))
    idf = {gram: log_images - math.log(count) for gram, count in frequency.items()}
    values: list[float] = []
    for caption, texts in zip(captions, counted, strict=True):
        made = _ngrams(words_of(caption))
        scores = [_agreement(made, truth, idf, log_images, variant) for truth in texts]
        values.append(10.0 * math.fsum(scores) / len(scores))
    return values


def _ngrams(words: list[str]) -> Counter[Ngram]:
    return Counter(
        tuple(words[i : i + n]) for n in range(1, LARGEST_N + 1) for i in range(len(words) - n + 1)
    )


def _agreement(
    made: Counter[Ngram],
    truth: Counter[Ngram],
    idf: dict[Ngram, float],
    unseen_idf: float,
    variant: Literal["cider", "cider-d"],
) -> float:
    """Mean over n of the cosine of two captions' tf-idf vectors, in 0..1."""
    clip = variant == "cider-d"
    total = 0.0
    for n in range(1, LARGEST_N + 1):
        left = {g: c * idf.get(g, unseen_idf) for g, c in made.items() if len(g) == n}
        right = {g: c * idf[g] for g, c in truth.items() if len(g) == n}
        norm = math.sqrt(_square(left) * _square(right))
        if norm > 0:
            total += (
                math.fsum(
                    (min(value, right[g]) if clip else value) * right[g]
                    for g, value in left.items()
                    if g in right
                )
                / norm
            )
    if clip:
        difference = _length(made) - _length(truth)
        total *= math.exp(-(difference**2) / (2.0 * LENGTH_SIGMA**2))
    return total / LARGEST_N


def _square(vector: dict[Ngram, float]) -> float:
    return math.fsum(value * value for value in vector.values())


def _length(counts: Counter[Ngram]) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 1)
