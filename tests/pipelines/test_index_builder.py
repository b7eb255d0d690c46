from __future__ import annotations

import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.index_builder import build_index


def test_a_child_that_takes_too_long_is_stopped(tmp_path):
    (tmp_path / "vectors").mkdir()
    np.save(tmp_path / "vectors" / "v.npy", np.eye(8, dtype=np.float32))
    with pytest.raises(PipelineError, match="more than 0 s"):
        build_index(
            tmp_path / "vectors",
            tmp_path / "index.faiss",
            {"index_key": "Flat"},
            timeout_seconds=0.01,
        )
    assert list(tmp_path.glob("*.json")) == []


def test_the_reason_of_a_failure_is_told(tmp_path):
    (tmp_path / "vectors").mkdir()
    with pytest.raises(PipelineError, match=r"autofaiss made no index.*exit code 1"):
        build_index(
            tmp_path / "vectors",
            tmp_path / "index.faiss",
            {"index_key": "Flat"},
            timeout_seconds=60,
        )
