from __future__ import annotations

import numpy as np
import pytest

from racm3.metrics.pixels import MAX_PSNR, psnr, psnr_values


def test_psnr_by_hand():
    originals = np.zeros((3, 2, 2, 3), dtype=np.uint8)
    made = originals.copy()
    made[0] = 255
    made[1] = 51  # a fifth of the range: error 1/25
    values = psnr_values(made, originals)
    np.testing.assert_allclose(values, [0.0, 10.0 * np.log10(25.0), MAX_PSNR], atol=1e-9)
    score = psnr(made, originals)
    assert score.value == pytest.approx(float(values.mean()))
    assert (score.unit, score.n) == ("dB", 3)


def test_psnr_is_symmetric():
    g = np.random.default_rng(0)
    a, b = (g.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8) for _ in range(2))
    np.testing.assert_array_equal(psnr_values(a, b), psnr_values(b, a))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(np.zeros((1, 2, 2, 3), dtype=np.uint8), np.zeros((1, 4, 4, 3), dtype=np.uint8))
