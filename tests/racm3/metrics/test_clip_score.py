from __future__ import annotations

import numpy as np
import pytest

from racm3.metrics.clip_score import clip_score


def test_mean_cosine_times_hundred():
    texts = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    images = np.array([[5.0, 0.0], [1.0, 0.0], [4.0, 3.0]], dtype=np.float32)
    made = clip_score(texts, images, scorer="small")
    assert made.value == pytest.approx(100.0 * (1.0 + 0.0 + 24.0 / 25.0) / 3.0)
    assert made.n == 3
    assert "small" in made.protocol


def test_mismatched_or_empty_vectors_are_refused():
    ones = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="one image a text"):
        clip_score(ones, ones[:1], scorer="s")
    with pytest.raises(ValueError, match="zero"):
        clip_score(ones, np.zeros_like(ones), scorer="s")
