"""Scores of answers, with a scorer that looks at nothing but mean colours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.scoring.board import Board, Place, slices_of
from pipelines.scoring.samples import (
    Answers,
    Instruments,
    Truth,
    compare,
    compare_with_copy,
    measure,
)
from racm3.encoder.base import unit
from racm3.metrics.bootstrap import resample
from racm3.metrics.cider import cider
from racm3.metrics.fid import frechet_distance
from racm3.metrics.kid import kid

N, SIDE = 24, 4
KEY = ("metric", "model", "group", "k", "memory")
WORDS = ["red", "green", "blue", "white", "large", "small", "round", "flag", "sun", "cat"]


class Colours:
    """Unit vectors of mean colours, and of what letters a caption has."""

    dim = 3

    def encode_images(self, images: Any) -> Any:
        return unit(np.asarray(images, dtype=np.float64).mean(axis=(1, 2)))

    def encode_text(self, captions: Any) -> Any:
        return unit(np.array([[len(c), c.count("e") + 1, c.count("a") + 1] for c in captions]))


def place(i: int) -> Place:
    group = "flags" if i < 12 else ""
    return Place(document_id=f"d{i:02d}", set="familiar", group=group, cluster=f"c{i // 2}")


@pytest.fixture(scope="module")
def truth() -> Truth:
    rng = np.random.default_rng(0)
    ids = [f"d{i:02d}" for i in range(N)]
    images = rng.integers(0, 256, (N, 1, 1, 3)) + rng.integers(-9, 9, (N, SIDE, SIDE, 3))
    images = np.clip(images, 0, 255).astype(np.uint8)
    captions = [" ".join(rng.choice(WORDS, 4)) for _ in ids]
    scorer = Colours()

    def by_id(values: Any) -> dict[str, Any]:
        return dict(zip(ids, values, strict=True))

    return Truth(
        images=by_id(images),
        captions=by_id(captions),
        codes=by_id(rng.integers(0, 5, (N, 9))),
        image_features=by_id(scorer.encode_images(images)),
        text_features=by_id(scorer.encode_text(captions)),
        inception_features=by_id(corners(images)),
    )


def corners(images: Any) -> Any:
    return np.asarray(images, dtype=np.float32)[:, 0, 0] / 255.0


HOW = Instruments(scorer=Colours(), inception=None, pairs="all", seed=3, resamples=200)


def drawn(truth: Truth, model: str, numbers: Any, *, noise: float, memory: str = "") -> Answers:
    """Images near the originals, and captions with some words of the references."""
    rng = np.random.default_rng(len(model))
    places = tuple(place(i) for i in numbers)
    originals = np.stack([truth.images[p.document_id] for p in places]).astype(np.float64)
    pixels = originals + noise * rng.normal(size=(len(places), 1, 1, 3)) + noise
    codes = np.stack([truth.codes[p.document_id] for p in places])[:, None]
    wrong = rng.random(codes.shape) < noise / 100.0
    return Answers(
        model=model,
        k=2 if memory else 0,
        memory=memory,
        places=places,
        slices=tuple(slices_of(places)),
        images=np.clip(pixels, 0, 255).astype(np.uint8),
        codes=np.where(wrong, codes + 1, codes),
    )


def written(truth: Truth, model: str, numbers: Any, *, keep: int, memory: str = "") -> Answers:
    places = tuple(place(i) for i in numbers)
    words = [truth.captions[p.document_id].split()[:keep] for p in places]
    return Answers(
        model=model,
        k=2 if memory else 0,
        memory=memory,
        places=places,
        slices=tuple(slices_of(places)),
        captions=tuple(" ".join([*some, "hat"]) for some in words),
    )


def rows_of(board: Board) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[name] for name in KEY): row for row in board.table().to_pylist()}


def test_images_are_compared_in_pairs(truth: Truth) -> None:
    board = Board()
    ours, base = (
        measure(board, answers, truth, HOW)
        for answers in (
            drawn(truth, "ra", range(N), noise=10.0, memory="m"),
            drawn(truth, "vanilla", range(N), noise=90.0),
        )
    )
    compare(board, ours, base, truth, HOW)
    rows = rows_of(board)
    for group in ("", "flags", "rest"):
        mine, other = (group, 2, "m"), (group, 0, "")
        for metric in ("kid", "cmmd") if not group else ():
            a, b = rows[metric, "ra", *mine]["value"], rows[metric, "vanilla", *other]["value"]
            difference = rows[f"{metric}_difference", "ra", *mine]
            assert difference["value"] == pytest.approx(a - b)
            assert difference["low"] <= difference["value"] <= difference["high"]
            assert difference["better"] == "lower"
        ratio = rows["token_accuracy_ratio", "ra", *mine]
        a, b = (
            rows["token_accuracy", model, *where]["value"]
            for model, where in (("ra", mine), ("vanilla", other))
        )
        assert ratio["value"] == pytest.approx(a / b)
    assert rows["kid", "ra", "flags", 2, "m"]["low"] is None  # of 6 concepts
    assert ("kid_difference", "ra", "flags", 2, "m") not in rows
    assert not [key for key in rows if key[0] in ("fid", "cider", "cider_gain")]
    assert not [key for key in rows if key[1] == "vanilla" and key[0].endswith("difference")]


def test_distances_and_intervals_are_of_concepts(truth: Truth) -> None:
    answers, board = drawn(truth, "ra", range(N), noise=50.0, memory="m"), Board()
    how = replace(HOW, pairs="apart")
    measure(board, answers, truth, how)
    row = rows_of(board)["kid", "ra", "", 2, "m"]
    real = np.stack([truth.image_features[p.document_id] for p in answers.places])
    some = resample(
        [p.cluster for p in answers.places], rng=np.random.default_rng([3, 4]), resamples=200
    )
    made = how.scorer.encode_images(answers.images)
    score = kid(made, real, features="f", resampling=some, pairs="apart")
    assert (row["value"], row["low"], row["high"]) == (score.value, score.low, score.high)
    assert "different concepts" in row["protocol"]
    assert "bootstrap over 12 concepts" in rows_of(board)["psnr", "ra", "", 2, "m"]["protocol"]


def test_fid_has_a_row_where_there_are_weights(truth: Truth) -> None:
    answers, board = drawn(truth, "ra", range(N), noise=50.0), Board()
    measure(board, answers, truth, replace(HOW, inception=corners))
    row = rows_of(board)["fid", "ra", "", 0, ""]
    assert truth.inception_features is not None
    real = np.stack([truth.inception_features[p.document_id] for p in answers.places])
    assert row["value"] == pytest.approx(frechet_distance(corners(answers.images), real))
    assert (row["low"], row["n"]) == (None, N)


def test_captions_are_compared_in_pairs_on_the_prompts_of_both(truth: Truth) -> None:
    board = Board()
    numbers = [*range(9), *range(12, N)]
    parts = (
        written(truth, "ra", numbers, keep=3, memory="m"),
        written(truth, "vanilla", range(3, N), keep=1),
        written(truth, "copy", reversed(range(N)), keep=2, memory="m"),
    )
    ours, base, copied = (measure(board, part, truth, HOW) for part in parts)
    compare(board, ours, base, truth, HOW)
    compare_with_copy(board, ours, copied, truth, HOW)
    compare_with_copy(board, base, copied, truth, HOW)  # of another memory
    rows = rows_of(board)
    shared = [*range(3, 9), *range(12, N)]
    references = [[truth.captions[f"d{i:02d}"]] for i in shared]

    def value(answers: Answers) -> float:
        ids = [p.document_id for p in answers.places]
        assert answers.captions is not None
        chosen = [answers.captions[ids.index(f"d{i:02d}")] for i in shared]
        return cider(chosen, references).value

    gain = rows["cider_gain", "ra", "", 2, "m"]
    assert gain["value"] == pytest.approx(value(parts[0]) - value(parts[1]))
    assert gain["n"] == len(shared)
    assert gain["low"] > 0
    over = rows["cider_gain_over_copy", "ra", "", 2, "m"]
    assert over["n"] == len(numbers)
    assert over["low"] <= over["value"] <= over["high"]
    own = rows["cider", "ra", "", 2, "m"]["value"]
    theirs = [parts[2].captions[N - 1 - i] for i in numbers if parts[2].captions]
    references = [[truth.captions[f"d{i:02d}"]] for i in numbers]
    assert over["value"] == pytest.approx(own - cider(theirs, references).value)
    assert ("cider_gain_over_copy", "vanilla", "", 0, "") not in rows


def test_no_prompt_in_common_is_no_comparison(truth: Truth) -> None:
    board = Board()
    ours, base = (
        measure(board, drawn(truth, model, numbers, noise=20.0), truth, HOW)
        for model, numbers in (("ra", range(12)), ("vanilla", range(12, N)))
    )
    before = board.table().num_rows
    compare(board, ours, base, truth, HOW)
    assert board.table().num_rows == before
