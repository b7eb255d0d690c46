from __future__ import annotations

import numpy as np

from racm3.encoder import unit


def test_rows_get_length_one_and_zero_stays_zero():
    got = unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
