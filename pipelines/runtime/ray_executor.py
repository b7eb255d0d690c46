"""`RayExecutor`: the work of a stage on a pool of Ray actors, on this machine or a cluster.

What crosses to a worker is small (a stage, its config, names of shards); what comes back is a
receipt. So a dead worker costs one shard: its item is tried again on a new actor, up to `tries`,
then it is poisoned. Every wait has a timeout, and an item that passes its deadline costs its
actor its life.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import ray

from pipelines.errors import PipelineError
from pipelines.runtime.executor import Builder, Outcome
from pipelines.runtime.ray_pool import Answer, Claim, RaySession, Slot, SlotPool

__all__ = ["RayExecutor"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_POLL_SECONDS = 0.2
_FETCH_SECONDS = 60.0
_ITEM_SECONDS = 3600.0
_FIT_SECONDS = 7 * 24 * 3600.0


class RayExecutor:
    """Actors that outlive a stage; `map` and `fit` may be called from several threads at once."""

    def __init__(
        self,
        *,
        workers: int | None = None,
        gpus_per_actor: float = 0,
        address: str | None = None,
        tries: int = 3,
    ) -> None:
        """Starts nothing yet: Ray comes up at the first use.

        Args:
            workers: actors, one CPU each; None: as many as this machine has CPUs.
            gpus_per_actor: GPUs (or a fraction) of each actor; 0: none.
            address: of a running Ray cluster; None: one is started on this machine.
            tries: how often an item, or a fit whose process died, is tried.

        Raises:
            ValueError: for fewer than one worker or try.
        """
        size = workers if workers is not None else os.cpu_count() or 1
        if size < 1 or tries < 1:
            raise ValueError(f"workers ({size}) and tries ({tries}) must be at least 1")
        self.tries = tries
        self.gpus_per_actor = gpus_per_actor
        self._pool = SlotPool(size, gpus_per_actor=gpus_per_actor)
        self._session = RaySession(address=address, cpus=2 * size + 2)  # Ray Train's stand beside

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the actors, and Ray if it was started here."""
        if ray.is_initialized():
            self._pool.close()
        self._session.close()

    def map(
        self,
        build: Builder[T, R],
        items: Sequence[T],
        *,
        done: Callable[[int, Outcome[R]], None],
        gpu: bool = False,
        deadline: float | None = None,
    ) -> list[Outcome[R]]:
        """See `Executor.map`; every actor of the pool has `gpus_per_actor`, whatever `gpu` says."""
        if not items:
            return []
        self._session.ensure()
        limit = deadline or _ITEM_SECONDS
        return _Map(self._pool, build, items, done=done, tries=self.tries, deadline=limit).run()

    def fit(
        self,
        job: Callable[..., R],
        *,
        gpu: bool = False,
        workers: int = 0,
        folder: Path | None = None,
    ) -> R:
        """See `Executor.fit`; a fit whose process dies is started again and resumes.

        Raises:
            PipelineError: when its process died on every try.
        """
        self._session.ensure()
        claim = Claim(wanted=max(1, min(workers, self._pool.size)))
        slots: list[Slot] = []
        self._pool.enter(claim)
        try:
            while claim.wanted:
                slot = self._pool.take(claim, seconds=_POLL_SECONDS)
                if slot is not None:
                    slots.append(slot)
                    claim.wanted -= 1
                elif slots and self._pool.satisfied(claim):
                    claim.wanted = 0  # two fits that wait for all slots would wait for ever
            if workers:
                return self._fit_together(job, slots, workers, folder, gpu)
            return self._fit_alone(job, slots[0])
        finally:
            for slot in slots:
                self._pool.give(claim, slot)
            self._pool.leave(claim)

    def _fit_together(
        self,
        job: Callable[..., R],
        slots: Sequence[Slot],
        workers: int,
        folder: Path | None,
        gpu: bool,
    ) -> R:
        from pipelines.runtime.ray_train import fit_in_ray_train

        for slot in slots:  # Ray Train starts processes of its own in their place
            self._pool.retire(slot)
        if folder is None:
            raise ValueError("a fit of several processes needs a folder that all of them share")
        return fit_in_ray_train(job, workers, folder=folder, gpu=gpu, failures=self.tries - 1)

    def _fit_alone(self, job: Callable[..., R], slot: Slot) -> R:
        for attempt in range(self.tries):
            try:
                answer = self._patient_answer(self._pool.actor(slot).fit.remote(job))
            except BaseException:  # interrupted: nobody waits for that process any more
                self._pool.retire(slot)
                raise
            if answer is not None:
                if answer.error is not None:
                    raise answer.error
                result: R = answer.result
                return result
            _log.warning("the process of a fit died (try %d of %d)", attempt + 1, self.tries)
            self._pool.retire(slot)
        raise PipelineError(
            f"the process of the fit died {self.tries} times; see Ray's logs for the reason "
            "(often memory), then run again: it resumes"
        )

    def _patient_answer(self, reference: Any) -> Answer | None:
        """The answer of a fit; None when its process died or passed every limit."""
        until = time.monotonic() + _FIT_SECONDS
        while time.monotonic() < until:
            ready, _ = ray.wait([reference], timeout=_POLL_SECONDS * 5)
            if ready:
                return _fetch(reference)
        return None


def _fetch(reference: Any) -> Answer | None:
    """A finished call's answer; None when the actor, not our code, failed."""
    try:
        answer: Answer = ray.get(reference, timeout=_FETCH_SECONDS)
    except (ray.exceptions.RayError, TypeError) as error:
        _log.warning("a worker was lost: %s", str(error).partition("\n")[0])
        return None
    return answer


@dataclass(slots=True)
class _Call:
    """What one actor is at."""

    slot: Slot
    index: int
    building: bool
    since: float = field(default_factory=time.monotonic)


class _Map:
    """One `map`: at most one item in flight per actor held."""

    def __init__(
        self,
        pool: SlotPool,
        build: Builder[Any, Any],
        items: Sequence[Any],
        *,
        done: Callable[[int, Outcome[Any]], None],
        tries: int,
        deadline: float,
    ) -> None:
        self._pool, self._build, self._items, self._done = pool, build, items, done
        self._tries, self._deadline = tries, deadline
        self._pending = deque(range(len(items)))
        self._failures = [0] * len(items)
        self._outcomes: list[Outcome[Any] | None] = [None] * len(items)
        self._flight: dict[Any, _Call] = {}
        self._held: set[Slot] = set()
        self._claim = Claim(wanted=len(items))

    def run(self) -> list[Outcome[Any]]:
        """Works until every item has its outcome."""
        self._pool.enter(self._claim)
        try:
            while self._pending or self._flight:
                self._fill()
                self._collect()
                self._watch()
        finally:
            for slot in tuple(self._held):  # only when something above was interrupted
                self._pool.retire(slot)
                self._give(slot)
            self._pool.leave(self._claim)
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _fill(self) -> None:
        while self._pending:
            slot = self._pool.take(self._claim, seconds=0 if self._flight else _POLL_SECONDS)
            if slot is None:
                return
            self._held.add(slot)
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        """Gives a held slot the next item, first the function if it does not have it."""
        index = self._pending.popleft()
        self._claim.wanted = len(self._pending)
        building = slot.actor is None or slot.configured is not self
        actor = self._pool.actor(slot)
        call = (
            actor.configure.remote(self._build)
            if building
            else actor.run.remote(self._items[index])
        )
        self._flight[call] = _Call(slot, index, building)

    def _collect(self) -> None:
        if not self._flight:
            return
        ready, _ = ray.wait(list(self._flight), num_returns=1, timeout=_POLL_SECONDS)
        for reference in ready:
            call = self._flight.pop(reference)
            answer = _fetch(reference)
            if answer is None:
                self._pool.retire(call.slot)
                self._failed(call.index, "WorkerDied: the process that ran it ended")
            elif answer.error is not None:
                self._failed(call.index, answer.text)
            elif call.building:
                call.slot.configured = self
                item = self._items[call.index]
                self._flight[call.slot.actor.run.remote(item)] = _Call(call.slot, call.index, False)
                continue
            else:
                self._finished(call.index, Outcome(answer.result))
            self._continue_or_give(call.slot)

    def _continue_or_give(self, slot: Slot) -> None:
        if self._pending and not self._pool.must_share(self._claim):
            self._start(slot)
            return
        if slot.actor is not None:  # what the function holds is not kept for nobody
            slot.actor.configure.remote(_forget)
            slot.configured = None
        self._give(slot)

    def _give(self, slot: Slot) -> None:
        self._held.discard(slot)
        self._pool.give(self._claim, slot)

    def _watch(self) -> None:
        """Ends the actors whose item passed its deadline."""
        late = [
            (reference, call)
            for reference, call in self._flight.items()
            if time.monotonic() - call.since > self._deadline
        ]
        for reference, call in late:
            del self._flight[reference]
            self._pool.retire(call.slot)
            self._failed(call.index, f"TimeoutError: not done in {self._deadline:g} s")
            self._continue_or_give(call.slot)

    def _failed(self, index: int, error: str) -> None:
        self._failures[index] += 1
        _log.warning("try %d of %d failed: %s", self._failures[index], self._tries, error)
        if self._failures[index] >= self._tries:
            self._finished(index, Outcome(None, error))
        else:
            self._pending.append(index)
            self._claim.wanted = len(self._pending)

    def _finished(self, index: int, outcome: Outcome[Any]) -> None:
        self._outcomes[index] = outcome
        self._done(index, outcome)


def _forget() -> Callable[[Any], Any]:
    """Replaces a function that is no longer needed."""
    return _nothing


def _nothing(_: Any) -> None:
    """Does nothing."""
