"""Several candidates of one prompt, and which of them is kept.

RA-CM3 keeps the best of 10 images by CLIP and of 32 captions by its own likelihood (section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from racm3.sampling.tasks import Sampled


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The candidates of one prompt, in the order of their seeds."""

    candidates: tuple[Sampled, ...]
    scores: tuple[float, ...]
    """One a candidate; higher is better."""

    @property
    def index(self) -> int:
        """Of the one that is kept: the highest score; ties go to the first."""
        return int(np.argmax(self.scores))

    @property
    def best(self) -> Sampled:
        """The one that is kept."""
        return self.candidates[self.index]


def candidate_seeds(seed: int, count: int) -> list[int]:
    """Seeds of the candidates of one prompt, in [0, 2**63).

    The first is the prompt's own, so that one candidate is the sample without any choice; the
    first n do not depend on `count`.
    """
    return [seed] + [
        int(np.random.SeedSequence((seed, i)).generate_state(1, np.uint64)[0]) >> 1
        for i in range(1, count)
    ]


def own_likelihood(samples: Sequence[Sampled]) -> list[float]:
    """Scores samples by mean log p a token: the lowest perplexity wins (RA-CM3's captions)."""
    return [sample.logprob / sample.written for sample in samples]


def best_of(
    draw: Callable[[Sequence[int], Sequence[int]], Sequence[Sampled]],
    *,
    seeds: Sequence[int],
    count: int,
    score: Callable[[Sequence[int], Sequence[Sampled]], Sequence[float]] | None = None,
) -> list[Chosen]:
    """Draws `count` candidates of each prompt and scores them.

    Args:
        draw: Draws samples of the prompts with these indices, one for each of the seeds.
        seeds: One a prompt.
        count: Candidates, >= 1.
        score: Of the samples of the prompts with these indices (CLIP's for images); `None`: by
            `own_likelihood`.

    Returns:
        All candidates and their scores, for each prompt.
    """
    rows = [row for row in range(len(seeds)) for _ in range(count)]
    drawn = draw(rows, [one for seed in seeds for one in candidate_seeds(seed, count)])
    scores = own_likelihood(drawn) if score is None else score(rows, drawn)
    return [
        Chosen(
            candidates=tuple(drawn[start : start + count]),
            scores=tuple(float(value) for value in scores[start : start + count]),
        )
        for start in range(0, len(rows), count)
    ]
