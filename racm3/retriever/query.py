"""Query dropout: a training query loses a fifth of its words, or of its image's patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from racm3.encoder.augment import drop_words

QUERY_DROPOUT = 0.2
"""RA-CM3's rate (arXiv:2211.12561, section 3.2)."""


def dropped_queries(
    caption: str, *, draws: int, rng: np.random.Generator, rate: float = QUERY_DROPOUT
) -> list[str]:
    """Draws 0..draws-1 of a caption with words left out; draw i does not depend on `draws`.

    The paper drops tokens; we drop words (split at white space), because a query is text until an
    encoder of any vocabulary reads it. At least one word stays.

    Args:
        caption: The query.
        draws: How many, at least 0.
        rng: The only source of chance: key it by seed and document.
        rate: Probability that a word goes, in [0, 1).

    Raises:
        ValueError: `rate` is out of range.
    """
    _check_rate(rate)
    return [drop_words(caption, rate, rng) for _ in range(draws)]


def dropped_image_queries(
    image: NDArray[np.uint8],
    *,
    draws: int,
    rng: np.random.Generator,
    patch: int,
    rate: float = QUERY_DROPOUT,
) -> Iterator[NDArray[np.uint8]]:
    """Draws 0..draws-1 of an image with patches left out; draw i does not depend on `draws`.

    What a dropped token of an image query is the paper does not say; we take the patches that a
    vision transformer would read as its tokens.

    Args:
        image: RGB, (H, W, 3), 0..255.
        draws: How many, at least 0.
        rng: As of `dropped_queries`, but another one.
        patch: Edge of a patch in pixels, at least 1.
        rate: Probability that a patch goes, in [0, 1).

    Raises:
        ValueError: `rate` or `patch` is out of range.
    """
    _check_rate(rate)
    if patch < 1:
        raise ValueError(f"A patch of {patch} pixels is no patch: give at least 1.")
    return (drop_patches(image, patch, rate, rng) for _ in range(draws))


def drop_patches(
    image: NDArray[np.uint8], patch: int, rate: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Paints each patch over with the image's mean colour with probability `rate`, never all.

    Patches are squares from the top left; at the right and lower edge they may be smaller. Where
    every patch would go, one drawn patch stays.
    """
    if rate == 0:
        return image
    height, width = image.shape[:2]
    grid = (-(-height // patch), -(-width // patch))
    gone = rng.random(grid) < rate
    if gone.all():
        gone.flat[int(rng.integers(gone.size))] = False
    covered = gone.repeat(patch, axis=0).repeat(patch, axis=1)[:height, :width]
    mean = np.rint(image.mean(axis=(0, 1))).astype(np.uint8)
    return np.where(covered[..., None], mean, image)


def document_generator(seed: int, document_id: str, *purpose: int) -> np.random.Generator:
    """A generator for one document's draws, the same in whatever shard or order it comes.

    Args:
        seed: At least 0.
        document_id: Whose draws.
        purpose: Numbers that tell apart what is drawn for one document; none for its text queries.
    """
    key: Sequence[int] = [seed, *document_id.encode("utf-8", "replace")]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key, spawn_key=purpose)))


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"The rate of query dropout is {rate}: it must lie in [0, 1).")
