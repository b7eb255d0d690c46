"""What was drawn, written or told, and the record of what made it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UsageError
from pipelines.runtime.context import environment
from storage_schemas.fingerprint import sha256_bytes

if TYPE_CHECKING:
    from racm3.sampling.candidates import Chosen

__all__ = ["Answer", "candidate_facts", "check_output", "record_of", "write_record"]


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

    def save(self, output: Path) -> dict[str, Any]:
        """Writes the answer, and its record beside it as `.json`; returns the record."""
        kind = "image/png" if self.png is not None else "text/plain; charset=utf-8"
        record = record_of(
            output,
            self.facts | {"text": self.text},
            sha256=sha256_bytes(self.data),
            media_type=kind,
        )
        output.write_bytes(self.data)
        write_record(record, output.with_suffix(".json"))
        return record


def record_of(output: Path, facts: Mapping[str, Any], **written: str) -> dict[str, Any]:
    """The whole origin of what stands in `output`: facts of the answer, of the file and of here."""
    return {
        "file": str(output),
        **facts,
        "output": {"file": str(output), **written},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": environment(),
    }


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Writes a record for people to read."""
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_output(output: Path, *, beside: bool = True) -> Path:
    """A path that an answer can be written to, said before anything is asked.

    Args:
        output: the path.
        beside: a record is written beside it, as `.json`.

    Raises:
        UsageError: when its folder is missing, or it takes the name of its record.
    """
    if beside and output.suffix == ".json":
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
