"""Sweeping what dead processes left in staging.

Everything unfinished lies in `_staging/`: a folder a run, and `writes/` for single files that
were being written. Each names its owner. What belongs to a process of this machine that no longer
runs is removed; what belongs to another machine cannot be judged from here and stays.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.runtime.store import WRITES, Store, writer_of

__all__ = ["owner_is_alive", "sweep_staging", "this_process"]

_ENDED = frozenset("ZXx")
"""States of a process that only waits for its parent, in `/proc/<pid>/stat`."""


def this_process() -> dict[str, Any]:
    """What tells this process from every other one, on this machine and since its start."""
    pid = os.getpid()
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "started": _start_ticks(pid),
    }


def owner_is_alive(folder: Path) -> bool:
    """Whether the process that owns a run folder still runs, as far as this machine can tell."""
    try:
        return _is_alive(json.loads((folder / "owner.json").read_bytes()))
    except (OSError, ValueError, KeyError):
        return False


def sweep_staging(store: Store) -> list[str]:
    """Removes what dead processes left in staging; returns the names of what went."""
    staging = store.local("_staging")
    gone = []
    for folder in sorted(staging.iterdir()) if staging.is_dir() else []:
        if folder.name == WRITES:
            gone += _sweep_writes(folder)
        elif not owner_is_alive(store.local(f"_runs/{folder.name}")):
            shutil.rmtree(folder, ignore_errors=True)
            gone.append(folder.name)
    return gone


def _sweep_writes(folder: Path) -> list[str]:
    gone = []
    for path in sorted(folder.iterdir()):
        host, pid = writer_of(path)
        if host == socket.gethostname() and not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)
            gone.append(path.name)
    return gone


def _is_alive(owner: Mapping[str, Any]) -> bool:
    if owner["host"] != socket.gethostname():
        return True
    return bool(owner["boot"] == _boot_id() and _start_ticks(owner["pid"]) == owner["started"])


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "unknown"


def _start_ticks(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None when it does not run any more.

    A process id is used again; together with this it is not. One that ended and that its parent
    has not asked after yet still has its entry, but does not run.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in _ENDED else fields[18]
    except (OSError, ValueError, IndexError):
        return None
