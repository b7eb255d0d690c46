"""Which weights FID's network has: a file that is known by its digest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pipelines.errors import UsageError
from pipelines.models import device
from pipelines.runtime.stage import StageConfig
from storage_schemas.fingerprint import sha256_file

if TYPE_CHECKING:
    from racm3.metrics.inception import Inception

__all__ = ["InceptionWeights", "open_inception", "require_inception"]


class InceptionWeights(StageConfig):
    """pytorch-fid's `pt_inception-2015-12-05`, or weights of the same layout."""

    path: str = Field(description="file on the machine that scores; not part of any fingerprint")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file")


def require_inception(weights: InceptionWeights) -> Path:
    """The file, if it is there and is the one that was meant.

    Raises:
        UsageError: when it is not.
    """
    path = Path(weights.path)
    if not path.is_file():
        raise UsageError(
            f"score.inception.path: there is no file {path}; put pytorch-fid's weights there, or "
            "leave score.inception out"
        )
    if (found := sha256_file(path)) != weights.sha256:
        raise UsageError(
            f"score.inception: {path} has SHA-256 {found}, not {weights.sha256}; name the right "
            "file, or its digest"
        )
    return path


def open_inception(weights: InceptionWeights) -> Inception:
    """FID's network on this machine's device.

    Raises:
        UsageError: when the file is missing, another one, or not of this network.
    """
    from racm3.metrics.inception import load_inception

    path = require_inception(weights)
    try:
        return load_inception(path, device=device())
    except ValueError as error:
        raise UsageError(f"score.inception.path: {error}") from error
