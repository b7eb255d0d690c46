from __future__ import annotations

import numpy as np
import pytest

from pipelines.records import image_png
from pipelines.scoring.board import Board, Place, slices_of
from pipelines.scoring.copying import ORIGINALS, add_copy_rates, fed_documents
from pipelines.scoring.samples import Answers, Truth
from racm3.document import DocumentTokens
from racm3.training.examples import Example, QueryContexts


class MeanColours:
    """An encoder that sees mean colours, so that cosines can be told by hand."""

    dim = 3

    def encode_text(self, captions):
        raise AssertionError("copying is a matter of images")

    def encode_images(self, images):
        means = np.stack([image.astype(np.float64).mean(axis=(0, 1)) for image in images])
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def flat(*colour):
    return np.broadcast_to(np.array(colour, np.uint8), (4, 4, 3)).copy()


RED, GREEN, MIXED = flat(250, 0, 0), flat(0, 250, 0), flat(250, 250, 0)
CODES = {"red": (1,) * 10, "green": (2,) * 10}
DOCUMENTS = {"red": {"image": image_png(RED)}, "green": {"image": image_png(GREEN)}}


def examples(modality="both"):
    tokens = tuple(
        DocumentTokens(text=(1,), image=codes).showing(modality) for codes in CODES.values()
    )
    query = QueryContexts(query="text", draw=0, document_ids=tuple(CODES), contexts=tokens)
    main = DocumentTokens(text=(1,), image=(0,) * 10)
    return [Example(example_id="e", document_id="asked", main=main, queries=(query,))]


def answers(**changes):
    places = tuple(Place(document_id=n, set="s", group="", cluster=n) for n in ("asked", "other"))
    values = {
        "model": "ra",
        "k": 2,
        "memory": "m",
        "places": places,
        "slices": tuple(slices_of(places)),
        "images": np.stack([RED, MIXED]),
        "codes": np.array([[[1] * 10, [1] * 8 + [2] * 2], [[2] * 9 + [0], [0] * 10]]),
        "contexts": (("red",), ("red", "green")),
    }
    return Answers(**(values | changes))


TRUTH = Truth(
    images={},
    captions={},
    codes={"asked": np.array([1] * 5 + [0] * 5), "other": np.array([0] * 10)},
    image_features=dict(
        zip(("asked", "other"), MeanColours().encode_images([MIXED, GREEN]), strict=True)
    ),
    text_features={},
)


def measured(parts, of=None):
    board = Board()
    add_copy_rates(board, parts, of or examples(), DOCUMENTS, TRUTH, MeanColours())
    return {(r["metric"], r["model"]): r for r in board.table().to_pylist()}


def test_copies_by_hand_with_the_originals_beside_them():
    rows = measured([answers()])
    values = {key: row["value"] for key, row in rows.items()}
    # of two samples the first is a copy of red (1.0) and the other not (0.8); then 0.9 and 0.0
    assert values["copy_rate_codes", "ra"] == pytest.approx((0.5 + 0.5) / 2)
    assert values["context_agreement_codes", "ra"] == pytest.approx((0.9 + 0.45) / 2)
    assert values["copy_rate_codes", ORIGINALS] == 0.0
    assert values["context_agreement_codes", ORIGINALS] == pytest.approx((0.5 + 0.0) / 2)
    # red is red; the mixed image is 45 degrees from both
    assert values["copy_rate_features", "ra"] == 0.5
    assert values["context_agreement_features", "ra"] == pytest.approx((1 + 0.5**0.5) / 2, rel=1e-5)
    assert values["copy_rate_features", ORIGINALS] == 0.5
    assert values["context_agreement_features", ORIGINALS] == pytest.approx(
        (0.5**0.5 + 1) / 2, rel=1e-5
    )
    assert {(r["n"], r["k"], r["memory"], r["task"]) for r in rows.values()} == {
        (2, 2, "m", "image")
    }


def test_prompts_without_contexts_are_left_out():
    rows = measured([answers(contexts=((), ("red", "green")))])
    assert {row["n"] for row in rows.values()} == {1}
    assert rows["context_agreement_codes", "ra"]["value"] == pytest.approx(0.45)


def test_who_read_no_image_has_no_rows():
    nothing_read = answers(contexts=((), ()), model="vanilla", k=0, memory="")
    assert measured([nothing_read]) == {}
    assert measured([answers()], of=examples("text")) == {}
    assert set(measured([answers()], of=examples("image"))) == set(measured([answers()]))
    captions = answers(images=None, codes=None, captions=("a", "b"))
    assert measured([captions]) == {}


def test_only_what_was_fed_for_images_is_asked_for():
    captions = answers(images=None, codes=None, contexts=(("blue",), ()))
    assert fed_documents([answers(), captions]) == {"red", "green"}
