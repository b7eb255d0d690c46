"""One run: its id, its log of OpenLineage events, who watches it."""

from __future__ import annotations

import json
import platform
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from pipelines.runtime.store import Store
from pipelines.runtime.sweep import sweep_staging, this_process
from storage_schemas.fingerprint import canonical_json, digest_of
from storage_schemas.lineage import EventType, Job, Run, RunEvent

__all__ = [
    "Progress",
    "RunContext",
    "SilentProgress",
    "artifacts_of_run",
    "environment",
    "environment_digest",
    "start_run",
]

ARTIFACTS = "artifacts.json"
_PACKAGES = (
    "racm3-pipeline", "ray", "pyarrow", "torch", "open_clip_torch", "faiss-cpu", "autofaiss",
    "img2dataset", "prefect", "numpy", "pillow", "tokenizers", "safetensors",
)  # fmt: skip


class Progress(Protocol):
    """Whoever waits for a stage."""

    def start(self, label: str, total: int, reused: int) -> None:
        """A stage begins with `total` units, `reused` of them done before."""

    def advance(self, label: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units are through."""

    def finish(self, label: str, note: str) -> None:
        """The stage ended."""


class SilentProgress:
    """Nobody waits."""

    def start(self, label: str, total: int, reused: int) -> None:
        """See `Progress`."""

    def advance(self, label: str, done: int, total: int, note: str = "") -> None:
        """See `Progress`."""

    def finish(self, label: str, note: str) -> None:
        """See `Progress`."""


@dataclass(kw_only=True)
class RunContext:
    """Identity and log of one run."""

    run_id: str
    namespace: str
    folder: Path
    progress: Progress = field(default_factory=SilentProgress)
    dry: bool = False
    """Plan only: nothing is executed or written."""
    max_poisoned: int = 0
    """Shards that may fail without failing their stage."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tensorboard_folder(self, label: str) -> Path:
        """Where the TensorBoard events of a fit belong; ``fit[a, b]`` becomes ``fit.a.b``."""
        name = label.replace("[", ".").replace(", ", ".").rstrip("]")
        return self.folder / "tensorboard" / name

    def event(self, state: EventType, job: str, detail: Mapping[str, Any] | None = None) -> None:
        """Appends an OpenLineage event; `state` is START, COMPLETE or FAIL."""
        if self.dry:
            return
        detail = dict(detail or {})
        inputs, outputs = detail.pop("inputs", ()), detail.pop("outputs", ())
        event = RunEvent(
            type=state,
            time=datetime.now(UTC).isoformat(),
            job=Job(namespace=self.namespace, name=job),
            run=Run(
                run_id=str(uuid.uuid5(uuid.UUID(self.run_id), job)),
                facets={"racm3": detail} if detail else {},
            ),
            inputs=inputs,
            outputs=outputs,
        )
        with self._lock, (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event.to_json(), ensure_ascii=True) + "\n")

    def record_artifacts(self, artifacts: Mapping[str, str]) -> None:
        """Writes down which artifacts the run came to, made or reused: ids by label of the step."""
        (self.folder / ARTIFACTS).write_bytes(canonical_json(dict(artifacts)))


def artifacts_of_run(store: Store, run_id: str) -> dict[str, str]:
    """Artifact ids by label of the step; empty where the run did not finish its steps."""
    data = store.get(f"_runs/{run_id}/{ARTIFACTS}")
    return {} if data is None else dict(json.loads(data))


def start_run(
    store: Store, namespace: str, config: Mapping[str, Any], **options: Any
) -> RunContext:
    """Opens a run: writes its resolved config, its environment and its owner.

    What dead runs left in staging is swept first. A dry run (`dry=True`) writes nothing.
    """
    run_id = str(uuid.uuid4())
    if options.get("dry"):
        folder = store.local(f"_runs/{run_id}")
        return RunContext(run_id=run_id, namespace=namespace, folder=folder, **options)
    sweep_staging(store)
    folder = store.folder(f"_runs/{run_id}")
    (folder / "config.json").write_bytes(canonical_json(config))
    (folder / "environment.json").write_bytes(canonical_json(environment()))
    (folder / "owner.json").write_bytes(canonical_json(this_process()))
    return RunContext(run_id=run_id, namespace=namespace, folder=folder, **options)


def environment() -> dict[str, str]:
    """Versions that bear on results, and the platform."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def environment_digest() -> str:
    """Digest of `environment()`."""
    return digest_of(environment())
