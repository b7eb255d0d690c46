"""Progress of a run: bars on a terminal, plain lines elsewhere; peak memory of the process tree."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bars", "Lines", "MemoryWatch", "watcher"]

_LINE_SECONDS = 5.0
_SAMPLE_SECONDS = 1.0
_SAMPLING_SHARE = 0.02
"""Most of one core that watching memory may take: to count shared pages once, the kernel walks all
pages of every process, a tenth of a second for a Ray session on a slow machine."""


@contextmanager
def watcher() -> Iterator[Bars | Lines]:
    """Bars when standard error is a terminal, else lines; both write to standard error."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    with Bars() as bars:
        yield bars


class Lines:
    """One line when a stage starts, now and then, and when it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._origin = time.monotonic()
        self._started: dict[str, tuple[float, int]] = {}
        self._told: dict[str, float] = {}

    def start(self, label: str, total: int, reused: int) -> None:
        """See `pipelines.runtime.context.Progress`."""
        self._started[label] = (time.monotonic(), reused)
        extra = f", {reused} of {total} shards done before" if reused else ""
        self._say(label, f"started{extra}")

    def advance(self, label: str, done: int, total: int, note: str = "") -> None:
        """See `pipelines.runtime.context.Progress`."""
        now = time.monotonic()
        if now - self._told.get(label, self._started.get(label, (now, 0))[0]) < _LINE_SECONDS:
            return
        self._told[label] = now
        began, reused = self._started.get(label, (now, 0))
        fresh, spent = done - reused, now - began
        left = f", {spent / fresh * (total - done):.0f} s left" if fresh > 0 and spent else ""
        rate = f", {fresh / spent:.2g}/s" if fresh > 0 and spent and not note else ""
        self._say(label, f"{done}/{total}{rate}{left}{', ' + note if note else ''}")

    def finish(self, label: str, note: str) -> None:
        """See `pipelines.runtime.context.Progress`."""
        began = self._started.get(label)
        spent = f" ({time.monotonic() - began[0]:.1f} s)" if began else ""
        self._say(label, f"{note}{spent}")

    def _say(self, label: str, text: str) -> None:
        with self._lock:
            sys.stderr.write(f"{time.monotonic() - self._origin:7.1f} s  {label}: {text}\n")
            sys.stderr.flush()


class Bars:
    """A bar a running stage; a line for each that ended."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<34.34}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, label: str, total: int, reused: int) -> None:
        """See `pipelines.runtime.context.Progress`."""
        with self._lock:
            self._tasks[label] = self._progress.add_task(
                label, total=total, completed=reused, note="", rate=""
            )

    def advance(self, label: str, done: int, total: int, note: str = "") -> None:
        """See `pipelines.runtime.context.Progress`."""
        with self._lock:
            task = self._tasks.get(label)
            if task is not None:
                speed = self._progress.tasks[self._progress.task_ids.index(task)].speed
                rate = f"{speed:.3g}/s" if speed else ""
                self._progress.update(task, completed=done, total=total, note=note, rate=rate)

    def finish(self, label: str, note: str) -> None:
        """See `pipelines.runtime.context.Progress`."""
        with self._lock:
            task = self._tasks.pop(label, None)
            if task is not None:
                self._progress.remove_task(task)
            self._progress.console.print(f"[green]✓[/green] {label}: {note}")


class MemoryWatch:
    """Samples the memory of this process and all below it, each shared page counted once."""

    def __init__(self) -> None:
        self.peak = 0
        """Bytes."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            begun = time.thread_time()
            self.peak = max(self.peak, _tree_bytes())
            if self._stop.wait(_pause(time.thread_time() - begun)):
                return


def _pause(cost: float) -> float:
    """Seconds until the next sample, after one that took so much of a core."""
    return max(_SAMPLE_SECONDS, cost * (1.0 / _SAMPLING_SHARE - 1.0))


def _tree_bytes() -> int:
    me, total = psutil.Process(), 0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error, OSError):
            full = process.memory_full_info()
            total += getattr(full, "pss", 0) or full.rss
    return total
