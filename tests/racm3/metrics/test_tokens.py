from __future__ import annotations

import numpy as np
import pytest

from racm3.metrics.tokens import token_accuracies, token_accuracy


def test_accuracy_counts_equal_places():
    drawn = np.array([[[1, 2, 3, 4]], [[5, 6, 7, 8]]])
    made = token_accuracy(drawn, np.array([[1, 2, 0, 4], [6, 5, 8, 7]]))
    assert (made.value, made.n) == (0.375, 2)


def test_samples_of_one_original_are_averaged_before_originals_are():
    drawn = np.array([[[1, 2], [1, 0], [0, 0], [1, 2]], [[5, 6]] * 4])
    true = np.array([[1, 2], [6, 5]])
    assert token_accuracies(drawn, true).tolist() == [0.625, 0.0]
    assert token_accuracy(drawn, true).n == 2


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        token_accuracy(np.zeros((2, 1, 3), dtype=np.int64), np.zeros((2, 4), dtype=np.int64))
