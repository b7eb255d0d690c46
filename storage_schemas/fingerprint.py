"""Canonical JSON and SHA-256: the one way in which this project names things by their content.

Canonical JSON here: UTF-8, keys sorted, no spaces, floats by `repr` (shortest round trip),
no NaN or infinity. Two equal values have equal bytes on every machine.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["canonical_json", "digest_of", "sha256_bytes", "sha256_file"]

_CHUNK = 1 << 20


def canonical_json(value: Any) -> bytes:
    """Encodes a JSON value so that equal values have equal bytes.

    Raises:
        ValueError: for NaN or infinity.
        TypeError: for anything that JSON cannot hold.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8", errors="surrogatepass")


def digest_of(value: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of the canonical JSON of `value`."""
    return sha256_bytes(canonical_json(value))


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()
