from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipelines.results.retriever_cost import retriever_rows
from pipelines.results.rows import SCHEMA


def manifest(**values: Any) -> Any:
    return SimpleNamespace(**values)


MADE = {
    "train_encoder": manifest(
        facts={"training_flops": 6e9, "steps": 10}, config={"training": {"batch_size": 20}}
    ),
    "embed_documents": manifest(rows_out=100, config={"draws": 4}),
    "build_memory": manifest(rows_out=80, facts={"dim": 32}),
    "retrieve_contexts": manifest(rows_out=500),
}


def test_flops_of_fitting_embedding_and_searching() -> None:
    found = {row["metric"]: row["value"] for row in retriever_rows(MADE)}
    pair = 6e9 / (3 * 10 * 20)  # forward; a step is three times that for each pair
    assert found == {
        "encoder_flops": 6e9,
        "embedding_flops": pair * 100 * 5,
        "search_flops": 2 * 32 * 80 * 500,
    }


def test_what_is_not_there_has_no_row() -> None:
    public = {name: made for name, made in MADE.items() if name != "train_encoder"}
    assert [row["metric"] for row in retriever_rows(public)] == ["search_flops"]
    assert retriever_rows({}) == []


def test_rows_have_the_columns_of_scores() -> None:
    whose = {"variant", "seed", "artifact", "recipe"}
    for row in retriever_rows(MADE):
        assert set(row) | whose == set(SCHEMA.names)
