from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from pipelines.errors import UsageError
from pipelines.scoring.inception import InceptionWeights, open_inception, require_inception
from storage_schemas.fingerprint import sha256_file


def test_a_file_is_taken_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"x": torch.zeros(1)}, path)
    right = InceptionWeights(path=str(path), sha256=sha256_file(path))
    assert require_inception(right) == path
    with pytest.raises(UsageError, match=f"has SHA-256 {right.sha256}, not 0000"):
        require_inception(InceptionWeights(path=str(path), sha256="0" * 64))
    with pytest.raises(UsageError, match="there is no file"):
        require_inception(InceptionWeights(path=str(tmp_path / "no.pth"), sha256=right.sha256))
    with pytest.raises(UsageError, match=r"score.inception.path: .* is missing"):
        open_inception(right)
    with pytest.raises(ValidationError, match="sha256"):
        InceptionWeights(path=str(path), sha256="12")
