"""Whether drawn images copy the contexts that their generator read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.records import image_array
from pipelines.scoring.board import Board
from pipelines.scoring.samples import Answers, Truth
from racm3.encoder.base import MultimodalEncoder
from racm3.metrics.copy_rate import (
    SAME_CODES,
    SAME_FEATURES,
    Closeness,
    code_agreement,
    context_agreement,
    copy_rate,
    feature_agreement,
)
from racm3.training.examples import Example

__all__ = ["ORIGINALS", "add_copy_rates", "fed_documents"]

ORIGINALS = "original images"
"""Stands where a model's name stands: how near the true images are to the same contexts."""
_THRESHOLDS = {"codes": SAME_CODES, "features": SAME_FEATURES}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Image:
    """An image, as both comparisons see it."""

    codes: NDArray[np.int64]
    """[n, h*w]: of all samples of a prompt, or one."""
    features: NDArray[np.float32]
    """[n, d]: of the first sample, or one."""


def fed_documents(answers: Iterable[Answers]) -> set[str]:
    """Ids of all contexts that were read for some drawn image."""
    drawn = (part for part in answers if part.images is not None)
    return {name for part in drawn for fed in part.contexts for name in fed}


def add_copy_rates(
    board: Board,
    answers: Sequence[Answers],
    examples: Iterable[Example],
    documents: Mapping[str, Mapping[str, Any]],
    truth: Truth,
    scorer: MultimodalEncoder,
) -> None:
    """Adds copy rates and mean agreements of drawn images, and of the originals, by slice.

    Prompts whose contexts showed no image (`assemble.context_modality`) are left out.

    Args:
        board: Filled.
        answers: Of all models.
        examples: Evaluation examples of all memories: they hold the contexts' codes.
        documents: Rows with `image` of `fed_documents` at least.
        truth: The originals.
        scorer: Whose features are compared.
    """
    shown = _contexts(fed_documents(answers), examples, documents, scorer)
    for part in answers:
        if part.images is None or part.codes is None:
            continue
        fed = [[shown[name] for name in names if name in shown] for names in part.contexts]
        if not any(fed):
            continue
        features = scorer.encode_images(part.images)
        made = [
            _Image(codes=codes, features=one[None])
            for codes, one in zip(part.codes, features, strict=True)
        ]
        original = [
            _Image(codes=truth.codes[i][None], features=truth.image_features[i][None])
            for i in (place.document_id for place in part.places)
        ]
        _add(board, part, part.model, made, fed)
        _add(board, part, ORIGINALS, original, fed)


def _contexts(
    ids: Iterable[str],
    examples: Iterable[Example],
    documents: Mapping[str, Mapping[str, Any]],
    scorer: MultimodalEncoder,
) -> dict[str, _Image]:
    """The contexts that showed an image."""
    codes = {
        name: np.array(tokens.image)
        for example in examples
        for query in example.queries
        for name, tokens in zip(query.document_ids, query.contexts, strict=True)
        if tokens.image
    }
    names = sorted(name for name in ids if name in codes)
    if not names:
        return {}
    pixels = np.stack([image_array(documents[name]["image"]) for name in names])
    return {
        name: _Image(codes=codes[name][None], features=one[None])
        for name, one in zip(names, scorer.encode_images(pixels), strict=True)
    }


def _add(
    board: Board,
    part: Answers,
    model: str,
    images: Sequence[_Image],
    fed: Sequence[Sequence[_Image]],
) -> None:
    read = [i for i, contexts in enumerate(fed) if contexts]
    closeness: dict[str, dict[int, NDArray[np.float64]]] = {
        "codes": {
            i: code_agreement(images[i].codes, np.concatenate([c.codes for c in fed[i]]))
            for i in read
        },
        "features": {
            i: feature_agreement(images[i].features, np.concatenate([c.features for c in fed[i]]))
            for i in read
        },
    }
    for where in part.slices:
        for of, measured in closeness.items():
            some: Closeness = [measured[i] for i in where.index if i in measured]
            if not some:
                continue
            for score in (
                copy_rate(some, of=of, threshold=_THRESHOLDS[of]),
                context_agreement(some, of=of),
            ):
                board.add(
                    score, model=model, task="image", where=where, k=part.k, memory=part.memory
                )
