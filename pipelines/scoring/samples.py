"""Scores of what was drawn and written, of what copying gives, and of the tokenizer's floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.scoring.board import Board, Place, Slice
from racm3.encoder.base import MultimodalEncoder
from racm3.metrics.bootstrap import (
    Resampling,
    gain_score,
    ratio_bootstrap,
    resample,
    with_interval,
)
from racm3.metrics.cider import cider, cider_values
from racm3.metrics.clip_score import clip_score, clip_values
from racm3.metrics.fid import fid
from racm3.metrics.kid import Distance, Metric, Pairs, compare_distances, distance
from racm3.metrics.pixels import psnr, psnr_values
from racm3.metrics.score import Score
from racm3.metrics.tokens import token_accuracies, token_accuracy

__all__ = ["Answers", "Instruments", "Measured", "Truth", "compare", "compare_with_copy", "measure"]

Images = NDArray[np.uint8]
Features = NDArray[np.float32]
SMALLEST_SAMPLE = 10
"""Distances between sets of images need at least so many."""
_DISTANCES: tuple[Metric, ...] = ("kid", "cmmd")
_FEATURES = "the scorer's image features"


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """The evaluation documents as they are, with their features."""

    images: Mapping[str, Images]
    captions: Mapping[str, str]
    codes: Mapping[str, NDArray[np.int64]]
    image_features: Mapping[str, Features]
    text_features: Mapping[str, Features]
    inception_features: Mapping[str, Features] | None = None


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
    further: Images | None = None
    """The other samples, [n, samples - 1, H, W, 3]: distances are of all."""
    codes: NDArray[np.int64] | None = None
    """All samples of each prompt, [n, samples, h*w]."""
    captions: tuple[str, ...] | None = None
    contexts: tuple[tuple[str, ...], ...] = ()
    """Ids of the documents that each prompt was given; empty for what reads none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruments:
    """What samples are measured with."""

    scorer: MultimodalEncoder
    inception: Callable[[Images], Features] | None
    """Features of FID; None: there is no FID."""
    pairs: Pairs
    """Which images meet in KID and CMMD."""
    seed: int
    resamples: int

    def resampled(self, places: Sequence[Place]) -> Resampling:
        """Draws of concepts; the same for the same places, so that models can be compared."""
        rng = np.random.default_rng([self.seed, 4])
        return resample([place.cluster for place in places], rng=rng, resamples=self.resamples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Answers, and what comparisons in pairs need of them."""

    answers: Answers
    accuracy: NDArray[np.float64] | None = None
    """Token accuracy of each prompt, [n]."""
    features: Features | None = None
    """Of all samples, by the scorer, [n, samples, d]."""


def measure(board: Board, answers: Answers, truth: Truth, how: Instruments) -> Measured:
    """Adds the rows of one model's images (token accuracy, PSNR, distances) or captions (CIDEr)."""
    _add_caption_scores(board, answers, truth, how)
    if answers.images is None:
        return Measured(answers=answers)
    ids = [place.document_id for place in answers.places]
    features = _features(answers, how.scorer)
    inception = None if how.inception is None else how.inception(answers.images)
    for where in answers.slices:
        drawn = how.resampled([answers.places[i] for i in where.index])
        scores = [
            *_image_scores(answers, features[:, 0], where, truth, drawn),
            *[d.score for d in _distances(features, answers, where.index, truth, drawn, how)],
        ]
        if inception is not None and truth.inception_features is not None:
            real = np.stack([truth.inception_features[ids[i]] for i in where.index])
            scores += _fid(inception[where.index], real)
        _add(board, scores, answers, where, "image")
    accuracy = None
    if answers.codes is not None:
        accuracy = token_accuracies(answers.codes, np.stack([truth.codes[i] for i in ids]))
    return Measured(answers=answers, accuracy=accuracy, features=features)


def compare(board: Board, ours: Measured, base: Measured, truth: Truth, how: Instruments) -> None:
    """Adds what a model gains over the baseline, in pairs, on the prompts that both answered."""
    for where, index, other in _shared(ours, base):
        drawn = how.resampled([ours.answers.places[i] for i in index])
        against = base.answers.model
        if ours.accuracy is not None and base.accuracy is not None:
            score = _accuracy_ratio(ours.accuracy[index], base.accuracy[other], drawn, against)
            _add(board, [score], ours.answers, where, "image")
        if ours.features is not None and base.features is not None:
            pair = [
                _distances(one.features, one.answers, places, truth, drawn, how)
                for one, places in ((ours, index), (base, other))
                if one.features is not None
            ]
            for a, b in zip(*pair, strict=True):
                scores = compare_distances(a, b, against=against)
                _add(board, scores, ours.answers, where, "image")
        scores = _cider_gain(ours, base, index, other, truth, drawn, "cider_gain")
        _add(board, scores, ours.answers, where, "caption")


def compare_with_copy(
    board: Board, ours: Measured, copy: Measured, truth: Truth, how: Instruments
) -> None:
    """Adds what a model's captions gain over handing over the top document's caption."""
    if ours.answers.memory != copy.answers.memory:
        return
    for where, index, other in _shared(ours, copy):
        drawn = how.resampled([ours.answers.places[i] for i in index])
        scores = _cider_gain(ours, copy, index, other, truth, drawn, "cider_gain_over_copy")
        _add(board, scores, ours.answers, where, "caption")


def _shared(ours: Measured, other: Measured) -> list[tuple[Slice, list[int], list[int]]]:
    """For each slice the prompts that both answered: their places with us, and with the other."""
    known = {place.document_id: i for i, place in enumerate(other.answers.places)}
    found = []
    for where in ours.answers.slices:
        ids = {int(i): ours.answers.places[i].document_id for i in where.index}
        index = [i for i, document_id in ids.items() if document_id in known]
        if index:
            found.append((where, index, [known[ids[i]] for i in index]))
    return found


def _image_scores(
    answers: Answers, features: Features, where: Slice, truth: Truth, drawn: Resampling
) -> list[Score]:
    assert answers.images is not None
    ids = [answers.places[i].document_id for i in where.index]
    images, original = answers.images[where.index], np.stack([truth.images[i] for i in ids])
    scores = [with_interval(psnr(images, original), psnr_values(images, original), drawn)]
    if answers.codes is not None:
        codes, true = answers.codes[where.index], np.stack([truth.codes[i] for i in ids])
        values = token_accuracies(codes, true)
        scores.append(with_interval(token_accuracy(codes, true), values, drawn))
    text, made = np.stack([truth.text_features[i] for i in ids]), features[where.index]
    score = clip_score(text, made, scorer="the scorer")
    return [*scores, with_interval(score, clip_values(text, made), drawn)]


def _features(answers: Answers, scorer: MultimodalEncoder) -> Features:
    """Of all samples, [n, samples, d]; the first one's come first."""
    assert answers.images is not None
    first = scorer.encode_images(answers.images)[:, None]
    if answers.further is None:
        return first
    flat = answers.further.reshape(-1, *answers.further.shape[2:])
    return np.concatenate(
        [first, scorer.encode_images(flat).reshape(len(first), -1, first.shape[-1])], axis=1
    )


def _distances(
    features: Features,
    answers: Answers,
    index: Sequence[int] | NDArray[np.int64],
    truth: Truth,
    drawn: Resampling,
    how: Instruments,
) -> list[Distance]:
    """KID and CMMD of some answers; none where there are too few."""
    if len(index) < SMALLEST_SAMPLE or drawn.clusters < 2:
        return []
    real = np.stack([truth.image_features[answers.places[i].document_id] for i in index])
    made = features[np.asarray(index)]
    return [
        distance(
            metric,
            made.reshape(-1, made.shape[-1]),
            real,
            features=_FEATURES,
            resampling=drawn,
            pairs=how.pairs,
            samples=made.shape[1],
        )
        for metric in _DISTANCES
    ]


def _fid(made: Features, real: Features) -> list[Score]:
    if len(made) < SMALLEST_SAMPLE:
        return []
    return [fid(made, real, features="pool3 features of the given Inception network")]


def _accuracy_ratio(
    ours: NDArray[np.float64], base: NDArray[np.float64], drawn: Resampling, against: str
) -> Score:
    result = ratio_bootstrap(ours, base, drawn)
    return Score(
        name="token_accuracy_ratio",
        value=result.ratio,
        unit="ratio",
        higher_is_better=True,
        n=len(ours),
        low=min(result.low, result.high),
        high=max(result.low, result.high),
        protocol=f"mean token accuracy / that of {against}, same settings and number of samples "
        f"a prompt; paired {drawn.said}",
    )


def _add_caption_scores(board: Board, answers: Answers, truth: Truth, how: Instruments) -> None:
    if answers.captions is None:
        return
    for where in answers.slices:
        written = [answers.captions[i] for i in where.index]
        references = _references(answers, where.index, truth)
        drawn = how.resampled([answers.places[i] for i in where.index])
        values = 100.0 * np.array(cider_values(written, references))
        score = with_interval(cider(written, references), values, drawn)
        _add(board, [score], answers, where, "caption")


def _cider_gain(
    ours: Measured,
    base: Measured,
    index: Sequence[int],
    other: Sequence[int],
    truth: Truth,
    drawn: Resampling,
    name: str,
) -> list[Score]:
    """Document frequencies are those of the shared prompts' references, in every draw."""
    if ours.answers.captions is None or base.answers.captions is None:
        return []
    references = _references(ours.answers, index, truth)
    written = [
        [captions[i] for i in places]
        for captions, places in ((ours.answers.captions, index), (base.answers.captions, other))
    ]
    mine, theirs = (100.0 * np.array(cider_values(some, references)) for some in written)
    protocol = (
        f"CIDEr - that of {base.answers.model} on the same prompts, document frequencies from "
        "their references"
    )
    return [gain_score(mine, theirs, drawn, name=name, protocol=protocol)]


def _references(
    answers: Answers, index: Sequence[int] | NDArray[np.int64], truth: Truth
) -> list[list[str]]:
    return [[truth.captions[answers.places[i].document_id]] for i in index]


def _add(board: Board, scores: Sequence[Score], answers: Answers, where: Slice, task: str) -> None:
    for score in scores:
        board.add(
            score, model=answers.model, task=task, where=where, k=answers.k, memory=answers.memory
        )
