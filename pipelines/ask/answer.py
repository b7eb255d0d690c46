"""What was drawn or written, and the record of what made it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UsageError
from pipelines.runtime.context import environment
from storage_schemas.fingerprint import sha256_bytes

if TYPE_CHECKING:
    from racm3.sampling.candidates import Chosen

__all__ = ["Answer", "candidate_facts", "check_output"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer of a generator: a picture or a text."""

    png: bytes | None
    text: str | None
    facts: dict[str, Any]
    """Plain JSON: task, prompt, seed, sampler, artifacts, contexts in the order fed, candidates."""

    @property
    def data(self) -> bytes:
        """What is written to the output file."""
        return self.png if self.png is not None else f"{self.text}\n".encode()

    def record(self, output: Path) -> dict[str, Any]:
        """The whole origin of what stands in `output`."""
        kind = "image/png" if self.png is not None else "text/plain; charset=utf-8"
        written = {"file": str(output), "sha256": sha256_bytes(self.data), "media_type": kind}
        return {
            "file": str(output),
            **self.facts,
            "text": self.text,
            "output": written,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": environment(),
        }

    def save(self, output: Path) -> dict[str, Any]:
        """Writes the answer, and its record beside it as `.json`; returns the record."""
        record = self.record(output)
        output.write_bytes(self.data)
        lines = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        output.with_suffix(".json").write_text(lines, encoding="utf-8")
        return record


def check_output(output: Path) -> Path:
    """A path that an answer can be written to, said before anything is drawn.

    Raises:
        UsageError: when its folder is missing, or it ends in `.json` as the record does.
    """
    if output.suffix == ".json":
        raise UsageError(f"{output}: the record takes this name; give another one for the result")
    if not output.parent.is_dir() or output.is_dir():
        raise UsageError(f"{output}: is no file in a folder that is there")
    return output


def candidate_facts(chosen: Chosen, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What is recorded of each candidate, in the order of their seeds."""
    return [
        {
            "seed": seed,
            "score": score,
            "log_likelihood": one.logprob,
            "chosen": index == chosen.index,
        }
        for index, (seed, score, one) in enumerate(
            zip(seeds, chosen.scores, chosen.candidates, strict=True)
        )
    ]
