from __future__ import annotations

import pyarrow as pa
import pytest

from pipelines.scoring.board import Board, Place, slices_of
from pipelines.scoring.retrieval import RETRIEVER, add_recall, counterparts
from racm3.document import DocumentTokens
from racm3.training.examples import Example, QueryContexts

BLANK = DocumentTokens(text=(), image=())


def documents(*rows):
    names = ("document_id", "concept", "role", "outcome")
    return pa.table(
        {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)}
    )


DOCUMENTS = documents(
    ("cat-open", "cat", "memory", "kept"),
    ("cat-twem", "cat", "evaluation", "kept"),
    ("dog-open", "dog", "train", "kept"),
    ("dog-lost", "dog", "train", "download_failed"),
    ("dog-twem", "dog", "evaluation", "kept"),
    ("owl-twem", "owl", "evaluation", "kept"),
    ("nameless", None, "train", "kept"),
    ("asks", None, "evaluation", "kept"),
)


def example(name, text, image):
    queries = [
        QueryContexts(query=side, draw=0, document_ids=hits, contexts=(BLANK,) * len(hits))
        for side, hits in (("text", text), ("image", image))
    ]
    return Example(example_id=name, document_id=name, main=BLANK, queries=tuple(queries))


def place(name, concept):
    return Place(document_id=name, set="all", group="", cluster=concept or name)


def test_counterparts_are_those_that_a_memory_may_hold():
    found = counterparts(DOCUMENTS, ["cat", "dog", "owl", "fox"])
    assert found == {"cat": {"cat-open"}, "dog": {"dog-open"}}
    assert counterparts(DOCUMENTS, []) == {}


def test_recall_of_each_task_by_the_query_that_serves_it():
    examples = [
        example("cat-twem", ("cat-open", "nameless"), ("nameless", "dog-open")),
        example("dog-twem", ("cat-open", "dog-open"), ("dog-open",)),
        example("owl-twem", ("cat-open",), ("cat-open",)),
        example("asks", ("nameless",), ("nameless",)),
    ]
    concepts = ("cat", "dog", "owl", None)
    places = [place(e.document_id, c) for e, c in zip(examples, concepts, strict=True)]
    board = Board()
    add_recall(
        board,
        examples,
        places,
        slices_of(places),
        counterparts(DOCUMENTS, [c for c in concepts if c]),
        memory="extended",
    )
    rows = {(r["metric"], r["task"]): r for r in board.table().to_pylist()}
    assert {key: row["value"] for key, row in rows.items()} == {
        ("recall_at_1", "image"): 0.5,
        ("recall_at_2", "image"): 1.0,
        ("recall_at_1", "caption"): 0.5,
        ("recall_at_2", "caption"): 0.5,
    }
    for row in rows.values():
        assert (row["model"], row["n"], row["k"], row["memory"]) == (RETRIEVER, 2, 2, "extended")
        assert "left out: 1 without a concept, 1 alone with theirs" in row["protocol"]
    assert "asked with the caption" in rows["recall_at_1", "image"]["protocol"]
    assert "asked with the image" in rows["recall_at_1", "caption"]["protocol"]


@pytest.mark.parametrize(("stored", "measured"), [(0, []), (1, [1]), (9, [1, 2]), (10, [1, 2, 10])])
def test_recall_is_measured_as_far_as_contexts_are_stored(stored, measured):
    hits = (*(f"x{i}" for i in range(stored - 1)), "cat-open")[:stored]
    places = [place("cat-twem", "cat")]
    board = Board()
    found = counterparts(DOCUMENTS, ["cat"])
    add_recall(board, [example("cat-twem", hits, ())], places, slices_of(places), found, memory="m")
    rows = [r for r in board.table().to_pylist() if r["task"] == "image"]
    assert [r["metric"] for r in rows] == [f"recall_at_{k}" for k in measured]
    assert [r["value"] for r in rows] == [float(k >= stored) for k in measured]


def test_a_document_is_no_counterpart_of_itself():
    places = [place("dog-open", "dog")]
    board = Board()
    own = [example("dog-open", ("dog-open",), ("dog-open",))]
    add_recall(board, own, places, slices_of(places), counterparts(DOCUMENTS, ["dog"]), memory="m")
    assert board.table().num_rows == 0
