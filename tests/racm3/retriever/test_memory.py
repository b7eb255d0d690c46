from __future__ import annotations

import numpy as np
import pytest

from racm3.retriever import Memory, document_vectors


def test_document_vector_is_the_unit_mean_of_unit_towers():
    text, image = np.array([[3.0, 0.0]], np.float32), np.array([[0.0, 0.5]], np.float32)
    np.testing.assert_allclose(document_vectors(text, image), [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
    with pytest.raises(ValueError, match="match"):
        document_vectors(text, image[:, :1])


def test_lookup_and_refusals():
    vectors = np.eye(2, dtype=np.float32)
    assert Memory(document_ids=("a", "b"), vectors=vectors).lookup([1, 0]) == ["b", "a"]
    with pytest.raises(ValueError, match="twice"):
        Memory(document_ids=("a", "a"), vectors=vectors)
    with pytest.raises(ValueError, match="sources"):
        Memory(document_ids=("a", "b"), vectors=vectors, sources=("x",))
