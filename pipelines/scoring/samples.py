"""Scores of what was drawn and written, of what copying gives, and of the tokenizer's floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.scoring.board import Board, Place, Slice
from racm3.encoder.base import MultimodalEncoder
from racm3.metrics.bootstrap import ratio_bootstrap
from racm3.metrics.cider import cider
from racm3.metrics.clip_score import clip_score
from racm3.metrics.kid import cmmd, kid
from racm3.metrics.pixels import psnr
from racm3.metrics.score import Score
from racm3.metrics.tokens import token_accuracies, token_accuracy

__all__ = ["Answers", "Truth", "add_caption_scores", "add_image_scores", "add_ratios"]

Images = NDArray[np.uint8]
SMALLEST_SAMPLE = 10
"""Distances between sets of images need at least so many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """The evaluation documents as they are, with their features."""

    images: Mapping[str, Images]
    captions: Mapping[str, str]
    codes: Mapping[str, NDArray[np.int64]]
    image_features: Mapping[str, NDArray[np.float32]]
    text_features: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What one model (or copying) answered to some prompts."""

    model: str
    k: int
    memory: str
    places: tuple[Place, ...]
    slices: tuple[Slice, ...]
    images: Images | None = None
    """The first sample of each prompt."""
    codes: NDArray[np.int64] | None = None
    """All samples of each prompt, [n, samples, h*w]."""
    captions: tuple[str, ...] | None = None
    contexts: tuple[tuple[str, ...], ...] = ()
    """Ids of the documents that each prompt was given; empty for what reads none."""


def add_image_scores(
    board: Board, answers: Answers, truth: Truth, scorer: MultimodalEncoder, *, seed: int
) -> NDArray[np.float64] | None:
    """Adds token accuracy, PSNR, KID, CMMD and CLIP score of drawn images.

    Returns:
        Per-prompt token accuracy [n], for comparisons in pairs; None without codes.
    """
    if answers.images is None:
        return None
    ids = [place.document_id for place in answers.places]
    features = scorer.encode_images(answers.images)
    for where in answers.slices:
        chosen = [ids[i] for i in where.index]
        original = np.stack([truth.images[i] for i in chosen])
        scores = [psnr(answers.images[where.index], original)]
        if answers.codes is not None:
            codes = np.stack([truth.codes[i] for i in chosen])
            scores.append(token_accuracy(answers.codes[where.index], codes))
        text = np.stack([truth.text_features[i] for i in chosen])
        scores.append(clip_score(text, features[where.index], scorer="the scorer"))
        real = np.stack([truth.image_features[i] for i in chosen])
        scores += _distances(features[where.index], real, seed)
        _add(board, scores, answers, where, "image")
    if answers.codes is None:
        return None
    return token_accuracies(answers.codes, np.stack([truth.codes[i] for i in ids]))


def add_caption_scores(board: Board, answers: Answers, truth: Truth) -> None:
    """Adds CIDEr of written captions."""
    if answers.captions is None:
        return
    ids = [place.document_id for place in answers.places]
    for where in answers.slices:
        written = [answers.captions[i] for i in where.index]
        references = [[truth.captions[ids[i]]] for i in where.index]
        _add(board, [cider(written, references)], answers, where, "caption")


def add_ratios(
    board: Board,
    ours: tuple[Answers, NDArray[np.float64]],
    base: tuple[Answers, NDArray[np.float64]],
    *,
    seed: int,
    resamples: int,
) -> None:
    """Adds how many times the baseline's token accuracy a model has, on the prompts both drew."""
    answers, values = ours
    other, other_values = base
    known = {p.document_id: v for p, v in zip(other.places, other_values, strict=True)}
    for where in answers.slices:
        index = [i for i in where.index if answers.places[i].document_id in known]
        if not index:
            continue
        result = ratio_bootstrap(
            values[index],
            np.array([known[answers.places[i].document_id] for i in index]),
            [answers.places[i].cluster for i in index],
            rng=np.random.default_rng([seed, 4]),
            resamples=resamples,
        )
        score = Score(
            name="token_accuracy_ratio",
            value=result.ratio,
            unit="ratio",
            higher_is_better=True,
            n=len(index),
            low=min(result.low, result.high),
            high=max(result.low, result.high),
            protocol=f"mean token accuracy / that of {other.model}, same settings and number of "
            "samples a prompt; paired bootstrap over concepts",
        )
        _add(board, [score], answers, where, "image")


def _distances(made: NDArray[np.float32], real: NDArray[np.float32], seed: int) -> list[Score]:
    if len(made) < SMALLEST_SAMPLE:
        return []
    rng = np.random.default_rng([seed, 5])
    return [
        kid(made, real, features="the scorer's image features", rng=rng),
        cmmd(made, real, features="the scorer's image features", rng=rng),
    ]


def _add(board: Board, scores: Sequence[Score], answers: Answers, where: Slice, task: str) -> None:
    for score in scores:
        board.add(
            score, model=answers.model, task=task, where=where, k=answers.k, memory=answers.memory
        )
