from __future__ import annotations

import numpy as np
import pytest

from racm3.metrics.tokens import token_accuracy


def test_accuracy_counts_equal_places():
    made = token_accuracy(
        np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([[1, 2, 0, 4], [6, 5, 8, 7]])
    )
    assert (made.value, made.n) == (0.375, 2)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="equal shapes"):
        token_accuracy(np.zeros((2, 3), dtype=np.int64), np.zeros((2, 4), dtype=np.int64))
