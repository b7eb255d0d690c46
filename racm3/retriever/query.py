"""Query dropout: a training query loses a fifth of its words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from racm3.encoder.augment import drop_words

QUERY_DROPOUT = 0.2
"""RA-CM3's rate (arXiv:2211.12561, section 3.2)."""


def dropped_queries(
    caption: str, *, draws: int, rng: np.random.Generator, rate: float = QUERY_DROPOUT
) -> list[str]:
    """Draws 0..draws-1 of a caption with words left out; draw i does not depend on `draws`.

    The paper drops tokens; we drop words (split at white space), because a query is text until an
    encoder of any vocabulary reads it. At least one word stays. Images lose nothing: what a token
    of an image query would be is not stated.

    Args:
        caption: The query.
        draws: How many, at least 0.
        rng: The only source of chance: key it by seed and document.
        rate: Probability that a word goes, in [0, 1).

    Raises:
        ValueError: `rate` is out of range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"The rate of query dropout is {rate}: it must lie in [0, 1).")
    return [drop_words(caption, rate, rng) for _ in range(draws)]


def document_generator(seed: int, document_id: str) -> np.random.Generator:
    """A generator for one document's draws, the same in whatever shard or order it comes."""
    key: Sequence[int] = [seed, *document_id.encode("utf-8", "replace")]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
