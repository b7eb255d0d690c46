"""How close made images come to the contexts that were read: memorisation is measured, not hidden.

An image may be near a context because it was copied, or because the two drawings are alike by
nature; so the original image is measured against the same contexts, and stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from racm3.metrics.score import Score, mean_score, share_score

SAME_CODES = 0.9
"""Share of equal codes from which an image counts as a copy."""
SAME_FEATURES = 0.95
"""Cosine of features from which an image counts as a copy."""

Closeness = Sequence[NDArray[np.float64]]
"""For each prompt, of each of its samples, the largest closeness to any context."""


def code_agreement(made: NDArray[np.int64], contexts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The largest share of places that have a context's code, of each sample, [samples].

    Args:
        made: Codes of one prompt's samples, [samples, h*w].
        contexts: Codes of its contexts, [k, h*w], k at least 1.

    Raises:
        ValueError: The shapes do not fit, or there is no context.
    """
    if made.ndim != 2 or contexts.ndim != 2 or made.shape[1] != contexts.shape[1]:
        raise ValueError(
            f"code_agreement needs shapes [samples, h*w] and [k, h*w], not {list(made.shape)} and "
            f"{list(contexts.shape)}."
        )
    if not len(contexts):
        raise ValueError("code_agreement: there is no context to compare with.")
    equal = (made[:, None] == contexts[None]).mean(axis=2)
    return np.asarray(equal.max(axis=1), dtype=np.float64)


def feature_agreement(
    made: NDArray[np.float32], contexts: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The largest cosine with a context's features, of each sample, [samples].

    Args:
        made: Features of one prompt's samples, [samples, d].
        contexts: Features of its contexts, [k, d], k at least 1.

    Raises:
        ValueError: The shapes do not fit, there is no context, or a row has no length.
    """
    if made.ndim != 2 or contexts.ndim != 2 or made.shape[1] != contexts.shape[1]:
        raise ValueError(
            f"feature_agreement needs shapes [samples, d] and [k, d], not {list(made.shape)} and "
            f"{list(contexts.shape)}."
        )
    if not len(contexts):
        raise ValueError("feature_agreement: there is no context to compare with.")
    return np.asarray((_unit(made) @ _unit(contexts).T).max(axis=1), dtype=np.float64)


def copy_rate(closeness: Closeness, *, of: str, threshold: float) -> Score:
    """Share of images that are a copy of a context.

    Args:
        closeness: `code_agreement` or `feature_agreement` of each prompt; one at least.
        of: What was compared, ``codes`` or ``features``; the score is called ``copy_rate_{of}``.
        threshold: From which closeness an image counts as a copy.

    Returns:
        The score in [0, 1]; n counts prompts, whose samples are averaged first.
    """
    return share_score(
        [float((some >= threshold).mean()) for some in closeness],
        name=f"copy_rate_{of}",
        higher_is_better=False,
        protocol=f"share of images whose {of} agree with those of some context by {threshold} or "
        "more; compare with the originals' rate against the same contexts",
    )


def context_agreement(closeness: Closeness, *, of: str) -> Score:
    """Mean of the closeness to the nearest context, ``context_agreement_{of}``; as `copy_rate`."""
    return mean_score(
        [float(some.mean()) for some in closeness],
        name=f"context_agreement_{of}",
        unit="fraction" if of == "codes" else "",
        higher_is_better=False,
        protocol=f"mean over images of the largest agreement of their {of} with any context's: "
        + ("share of equal codes, place by place" if of == "codes" else "cosine"),
    )


def _unit(features: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise ValueError("feature_agreement: a feature vector is zero (or not a number).")
    return np.asarray(wide / lengths, dtype=np.float64)
