from __future__ import annotations

import faiss
import numpy as np
import pytest

from racm3.retriever import ExactIndex, FaissIndex


def unit_rows(seed, count, dim=8):
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_exact_equals_brute_force():
    vectors, queries = unit_rows(0, 50), unit_rows(1, 7)
    scores, positions = ExactIndex(vectors).search(queries, 10)
    brute = queries @ vectors.T
    assert (positions == np.argsort(-brute, axis=1)[:, :10]).all()
    np.testing.assert_allclose(scores, np.take_along_axis(brute, positions, 1), rtol=1e-5)


@pytest.mark.parametrize("memory_map", [False, True])
def test_survives_save_and_load(tmp_path, memory_map):
    index = ExactIndex(unit_rows(0, 50))
    index.save(tmp_path / "m.faiss")
    loaded = FaissIndex.load(tmp_path / "m.faiss", memory_map=memory_map)
    queries = unit_rows(1, 5)
    assert (loaded.search(queries, 3)[1] == index.search(queries, 3)[1]).all()
    assert (loaded.size, loaded.dim) == (50, 8)


def test_approximate_index_finds_most(tmp_path):
    vectors, queries = unit_rows(0, 500), unit_rows(1, 40)
    hnsw = faiss.index_factory(8, "HNSW16,Flat", faiss.METRIC_INNER_PRODUCT)
    hnsw.add(vectors)
    faiss.write_index(hnsw, str(tmp_path / "h.faiss"))
    found = FaissIndex.load(tmp_path / "h.faiss").search(queries, 10)[1]
    exact = ExactIndex(vectors).search(queries, 10)[1]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])
    assert recall > 0.9


def test_fewer_vectors_than_asked_for_are_marked():
    scores, positions = ExactIndex(unit_rows(0, 2)).search(unit_rows(1, 1), 4)
    assert (positions[0, 2:] == -1).all()
    assert np.isneginf(scores[0, 2:]).all()


def test_bad_input_is_refused(tmp_path):
    (tmp_path / "no.faiss").write_bytes(b"no index")
    with pytest.raises(ValueError, match="no faiss index"):
        FaissIndex.load(tmp_path / "no.faiss")
    with pytest.raises(ValueError, match="does not exist"):
        FaissIndex.load(tmp_path / "absent")
    with pytest.raises(ValueError, match="inner products"):
        FaissIndex(faiss.IndexFlatL2(3))
    with pytest.raises(ValueError, match="takes"):
        ExactIndex(unit_rows(0, 2)).search(unit_rows(0, 2, dim=3), 1)
