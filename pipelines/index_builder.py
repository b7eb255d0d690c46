"""Builds a faiss index with autofaiss; run as a child process, which may then eat all it likes.

`python -m pipelines.index_builder REQUEST.json`, where the request holds `vectors` (a folder with
one .npy file), `index` (the file to write) and `options` for `autofaiss.build_index`. Exit code 0
only when the index was written.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError

__all__ = ["build_index", "main"]

_LAST_LINES = 5


def build_index(
    vectors: Path, index: Path, options: Mapping[str, Any], *, timeout_seconds: float
) -> None:
    """Builds an index of inner products in a child process of one thread.

    Args:
        vectors: folder that holds one .npy file, [N, d] float32; its rows are the positions.
        index: file to write.
        options: of `autofaiss.build_index`.
        timeout_seconds: after which the child is killed.

    Raises:
        PipelineError: when the child fails, gives no index, or takes too long; its last words are
            in the message.
    """
    request = index.with_suffix(".request.json")
    request.write_text(
        json.dumps({"vectors": str(vectors), "index": str(index), "options": dict(options)})
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipelines.index_builder", str(request)]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            cwd=Path(__file__).parents[1],
        )
    except subprocess.TimeoutExpired as error:
        raise PipelineError(
            f"autofaiss took more than {timeout_seconds:.0f} s; choose a cheaper memory.index_key"
        ) from error
    finally:
        request.unlink(missing_ok=True)
    if done.returncode or not index.is_file():
        words = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
        raise PipelineError(
            f"autofaiss made no index with {dict(options)} (exit code {done.returncode}): {words}; "
            "choose another memory.index_key"
        )


def main(request: Path) -> int:
    """The child: 0 when the index was written, 1 when autofaiss declined."""
    from autofaiss import build_index as autofaiss_index

    wanted = json.loads(request.read_text())
    index, _ = autofaiss_index(
        embeddings=wanted["vectors"],
        index_path=wanted["index"],
        index_infos_path=wanted["index"] + ".infos.json",
        file_format="npy",
        metric_type="ip",
        nb_cores=1,
        verbose=logging.WARNING,
        **wanted["options"],
    )
    Path(wanted["index"] + ".infos.json").unlink(missing_ok=True)
    return 0 if index is not None else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
