from __future__ import annotations

import numpy as np
import PIL
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.records import (
    image_array,
    image_png,
    image_stack,
    log_table,
    memory_of,
    rows_of,
    samples_of,
    vector_lists,
    vector_matrix,
    vectors_column,
)
from racm3.training.records import LogRow
from storage_schemas.tables import TABLES


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_pixels_come_back(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    png = image_png(pixels)
    assert png == image_png(pixels)
    np.testing.assert_array_equal(image_array(png), pixels)


def test_only_png_is_opened():
    with pytest.raises(PIL.UnidentifiedImageError):
        image_array(b"GIF89a" + b"\0" * 20)


def test_a_stack_resizes_what_has_another_size():
    white = np.full((4, 8, 3), 255, np.uint8)
    black = np.zeros((6, 6, 3), np.uint8)
    stack = image_stack([image_png(white), image_png(black)], 6)
    assert stack.shape == (2, 6, 6, 3)
    assert stack[0].min() == 255
    assert stack[1].max() == 0
    assert image_stack([], 6).shape == (0, 6, 6, 3)


@given(st.integers(0, 5), st.integers(1, 4), st.integers(0, 3))
def test_vectors_come_back(count, width, draws):
    matrix = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    column = pa.chunked_array([vectors_column(matrix)])
    found = vector_matrix(column)
    assert found.shape == ((count, width) if count else (0, 0))
    np.testing.assert_array_equal(found, matrix.reshape(found.shape))
    blocks = np.random.default_rng(1).normal(size=(count, draws, width)).astype(np.float32)
    back = np.array(vector_lists(blocks).to_pylist(), dtype=np.float32)
    np.testing.assert_array_equal(back.reshape(blocks.shape), blocks)


def test_a_slice_of_vectors_is_that_slice():
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = pa.chunked_array([vectors_column(matrix)]).slice(1, 2)
    np.testing.assert_array_equal(vector_matrix(column), matrix[1:3])


def test_vectors_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="lengths"):
        vector_matrix(pa.chunked_array([[[1.0], [1.0, 2.0]]]))


def test_a_log_has_one_row_a_measure():
    common = {"tokens": 5.0, "flops": 2.0, "learning_rate": 0.1, "grad_norm": 1.5, "seconds": 0.2}
    log = [
        LogRow(step=1, split="train", metrics={"loss": 3.0}, **common),
        LogRow(step=1, split="validation", metrics={"loss": 4.0, "r1": 0.5}, **common),
    ]
    table = TABLES["training_log"].conform(log_table(log))
    found = {(r["split"], r["metric"]): r["value"] for r in table.to_pylist()}
    assert found == {
        ("train", "loss"): 3.0,
        ("train", "learning_rate"): 0.1,
        ("train", "grad_norm"): 1.5,
        ("validation", "loss"): 4.0,
        ("validation", "r1"): 0.5,
    }


def test_the_first_sample_of_a_prompt_is_that_of_the_least_seed():
    rows = [
        {"task": task, "prompt_id": prompt, "seed": seed}
        for task, prompt, seed in (
            ("image", "b", 9), ("image", "a", 7), ("image", "b", 2), ("caption", "a", 1),
            ("image", None, 0),
        )
    ]  # fmt: skip
    found = samples_of(pa.Table.from_pylist(rows), "image")
    assert {prompt: [row["seed"] for row in some] for prompt, some in found.items()} == {
        "a": [7],
        "b": [2, 9],
    }


def test_rows_of_some_documents_are_found():
    table = pa.table({"document_id": ["a", "b", "c", "b"], "n": [1, 2, 3, 4]})
    table = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    assert rows_of(table, ["b", "z"]).column("n").to_pylist() == [2, 4]
    assert rows_of(table, pa.array(["c", "a"])).column("n").to_pylist() == [1, 3]
    assert rows_of(table, []).num_rows == 0


def memory_files(folder, count):
    vectors = np.eye(4, dtype=np.float32)[:count]
    files = {name: folder / name for name in ("document_vectors.npy", "image_vectors.npy")}
    for path in files.values():
        np.save(path, vectors)
    return files


def memory_table(ids):
    rows = [
        {"position": i, "document_id": name, "source": "s", "role": "train"}
        for i, name in enumerate(ids)
    ]
    return pa.Table.from_pylist(rows[::-1], schema=TABLES["memory"].arrow)


def test_a_memory_reads_its_columns_where_it_is_asked(tmp_path):
    held = memory_of(memory_table(["a", "b", "c"]), memory_files(tmp_path, 3))
    assert len(held) == len(held.document_ids) == 3
    assert [held.document_ids[i] for i in range(3)] == list(held.document_ids) == ["a", "b", "c"]
    assert held.document_ids[1:] == ("b", "c")
    assert held.lookup([2, 0]) == ["c", "a"]
    assert held.sources[0] == "s"
    with pytest.raises(IndexError):
        held.document_ids[3]


def test_a_memory_that_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        memory_of(memory_table(["a", "b", "a"]), memory_files(tmp_path, 3))
    with pytest.raises(ValueError, match="3 document ids but 2 vectors"):
        memory_of(memory_table(["a", "b", "c"]), memory_files(tmp_path, 2))
