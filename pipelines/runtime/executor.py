"""Executors: where the work of a stage is done. A stage never knows which one it has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

__all__ = ["Executor", "LocalExecutor", "Outcome"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

Builder = Callable[[], Callable[[T], R]]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """Result of one item, or the error of its last try."""

    result: R | None
    error: str | None = None


class Executor(Protocol):
    """Maps a built function over items, and runs fits."""

    def map(
        self,
        build: Builder[T, R],
        items: Sequence[T],
        *,
        done: Callable[[int, Outcome[R]], None],
        gpu: bool = False,
        deadline: float | None = None,
    ) -> list[Outcome[R]]:
        """Applies `build()` to every item; results stand in the order of the items.

        Args:
            build: makes the function inside the worker, once a worker; must be picklable.
            items: units of work, picklable.
            done: told the index and outcome of each item as it ends.
            gpu: whether the function runs on a GPU where the executor has any.
            deadline: seconds after which a single item is given up and tried again elsewhere.
        """

    def fit(
        self,
        job: Callable[..., R],
        *,
        gpu: bool = False,
        workers: int = 0,
        folder: Path | None = None,
    ) -> R:
        """Runs a fit; with `workers` >= 1 inside a Ray Train group where there is Ray.

        Args:
            job: picklable; called without arguments, in a group with `group=FitGroup(...)`.
            gpu: whether it wants a GPU where there is one.
            workers: processes that fit together; 0: one, without Ray Train.
            folder: shared by all workers; needed where `workers` >= 1.
        """


class LocalExecutor:
    """Everything in this process, one item after the other."""

    def __init__(self, *, tries: int = 3) -> None:
        self.tries = tries

    def map(
        self,
        build: Builder[T, R],
        items: Sequence[T],
        *,
        done: Callable[[int, Outcome[R]], None],
        gpu: bool = False,
        deadline: float | None = None,
    ) -> list[Outcome[R]]:
        """See `Executor.map`; a deadline cannot be enforced in this process."""
        if not items:
            return []
        function = build()
        outcomes: list[Outcome[R]] = []
        for index, item in enumerate(items):
            outcome = self._try(function, item)
            outcomes.append(outcome)
            done(index, outcome)
        return outcomes

    def fit(
        self,
        job: Callable[..., R],
        *,
        gpu: bool = False,
        workers: int = 0,
        folder: Path | None = None,
    ) -> R:
        """See `Executor.fit`; one process, whatever `workers` says."""
        return job()

    def _try(self, function: Callable[[T], R], item: T) -> Outcome[R]:
        error = ""
        for attempt in range(self.tries):
            try:
                return Outcome(function(item))
            except Exception as problem:
                _log.warning("try %d of %d failed: %s", attempt + 1, self.tries, problem)
                error = f"{type(problem).__name__}: {problem}"
        return Outcome(None, error)
