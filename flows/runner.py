"""How flows run their tasks, and what they return."""

from __future__ import annotations

from typing import Any

from prefect.task_runners import ThreadPoolTaskRunner

from flows.session import Session
from flows.settings import Settings

__all__ = ["concurrent", "summary_of"]

_MOST = 64  # threads that mostly wait: a step holds one from its submission on


def concurrent() -> Any:
    """Threads that wait for the executor; one with the local executor, which works in them."""
    local = Settings().executor == "local"
    return ThreadPoolTaskRunner(max_workers=1 if local else _MOST)


def summary_of(session: Session) -> dict[str, str]:
    """Artifact ids by step, and the run."""
    made = {label: manifest.artifact_id for label, manifest in session.made.items()}
    return {"run_id": session.run.run_id} | made
