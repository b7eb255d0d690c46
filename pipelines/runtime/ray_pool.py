"""A pool of Ray actors that outlive a stage, shared fairly by the threads that claim them.

A slot is the right to one actor; the actor in it is made at first use and made anew when it dies.
Each thread that has work holds a `Claim`. While others wait, a claim may hold at most its share
(slots divided by claims, at least one) and gives back what it holds above that between two items.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

__all__ = ["Answer", "Claim", "RaySession", "Slot", "SlotPool", "portable"]

_OBJECT_STORE_BYTES = 256 << 20
_START_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker sends back: a result, or the error that our code raised."""

    result: Any = None
    error: BaseException | None = None
    text: str = ""
    """The error in one line, as every executor words it."""


class Worker:
    """The generic actor: runs whatever it was configured with, one call at a time."""

    def __init__(self) -> None:
        self._function: Callable[[Any], Any] | None = None

    def configure(self, build: Callable[[], Callable[[Any], Any]]) -> Answer:
        """Builds the function of a map, in place of the one before."""
        self._function = None
        return _answer(self._build, build)

    def run(self, item: Any) -> Answer:
        """Applies the function to one item."""
        return _answer(self._function, item)

    def fit(self, job: Callable[[], Any]) -> Answer:
        """Runs a fit in this process."""
        self._function = None
        return _answer(job)

    def _build(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self._function = build()


def _answer(function: Callable[..., Any] | None, *arguments: Any) -> Answer:
    if function is None:
        raise RuntimeError("the worker was asked to run before it was configured")
    try:
        return Answer(function(*arguments))
    except Exception as error:
        return Answer(error=portable(error), text=f"{type(error).__name__}: {error}")


def portable(error: Exception) -> Exception:
    """The error, with its traceback as a note, where it survives pickling; otherwise its text."""
    from ray import cloudpickle

    error.add_note(traceback.format_exc())

    try:
        cloudpickle.loads(cloudpickle.dumps(error))  # type: ignore[no-untyped-call]
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@dataclass(eq=False, slots=True)
class Slot:
    """The right to one actor."""

    actor: Any = None
    configured: object | None = None
    """The map whose function the actor holds."""


@dataclass(eq=False, slots=True)
class Claim:
    """One thread's demand."""

    wanted: int
    """Slots it could use now beyond those it holds."""
    held: int = 0


class SlotPool:
    """Thread-safe checkout of slots."""

    def __init__(self, size: int, *, gpus_per_actor: float) -> None:
        self.size = size
        self._gpus = gpus_per_actor
        self._idle = [Slot() for _ in range(size)]
        self._claims: list[Claim] = []
        self._changed = threading.Condition()

    def enter(self, claim: Claim) -> None:
        """Registers a demand."""
        with self._changed:
            self._claims.append(claim)

    def leave(self, claim: Claim) -> None:
        """Withdraws a demand; everything it held must have been given back."""
        with self._changed:
            self._claims.remove(claim)
            self._changed.notify_all()

    def take(self, claim: Claim, *, seconds: float) -> Slot | None:
        """A slot within `seconds`, or None when it is another claim's turn."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._may_take(claim), timeout=seconds):
                return None
            claim.held += 1
            return self._idle.pop()

    def give(self, claim: Claim, slot: Slot) -> None:
        """Gives a slot back, with the actor in it."""
        with self._changed:
            claim.held -= 1
            self._idle.append(slot)
            self._changed.notify_all()

    def must_share(self, claim: Claim) -> bool:
        """Whether `claim` holds more than its share while another one waits for its own."""
        with self._changed:
            return claim.held > self._share() and self._others_short(claim)

    def satisfied(self, claim: Claim) -> bool:
        """Whether `claim` holds its share."""
        with self._changed:
            return claim.held >= self._share()

    def actor(self, slot: Slot) -> Any:
        """The actor of a slot, made now if there is none."""
        if slot.actor is None:
            remote = ray.remote(num_cpus=1, num_gpus=self._gpus, max_restarts=0)(Worker)
            slot.actor, slot.configured = remote.remote(), None
        return slot.actor

    def retire(self, slot: Slot) -> None:
        """Ends the actor of a slot, whatever state it is in."""
        if slot.actor is not None:
            ray.kill(slot.actor, no_restart=True)
        slot.actor = slot.configured = None

    def close(self) -> None:
        """Ends the idle actors."""
        with self._changed:
            for slot in self._idle:
                self.retire(slot)

    def _share(self) -> int:
        return max(1, self.size // max(1, len(self._claims)))

    def _others_short(self, claim: Claim) -> bool:
        share = self._share()
        return any(c.wanted > 0 and c.held < share for c in self._claims if c is not claim)

    def _may_take(self, claim: Claim) -> bool:
        if not self._idle:
            return False
        return claim.held < self._share() or not self._others_short(claim)


class RaySession:
    """Joins Ray, or starts one on this machine, and ends what it started.

    A thread of its own starts Ray and lives as long as the session: Linux ends Ray's processes
    with the thread that started them, so that nothing outlives a killed driver, and so that a
    short-lived thread must not be that one.
    """

    def __init__(self, *, address: str | None, cpus: int) -> None:
        self._address, self._cpus = address, cpus
        self._started, self._stop = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._owner: threading.Thread | None = None
        self._lock = threading.Lock()

    def ensure(self) -> None:
        """Returns when Ray can be used.

        Raises:
            RuntimeError: when it does not start.
        """
        with self._lock:
            if self._owner is None and not ray.is_initialized():
                self._owner = threading.Thread(target=self._own, name="ray-owner", daemon=True)
                self._owner.start()
                started = self._started.wait(_START_SECONDS)
                if not started or self._error is not None:
                    raise RuntimeError(
                        f"Ray did not start ({self._error or 'no answer'}); "
                        "see /tmp/ray/session_latest/logs, or use the local executor"
                    ) from self._error

    def close(self) -> None:
        """Ends Ray if this session started or joined it."""
        with self._lock:
            if self._owner is not None:
                self._stop.set()
                self._owner.join(timeout=30)
                self._owner = None
                self._started.clear()
                self._stop.clear()

    def _own(self) -> None:
        try:
            self._start()
        except BaseException as error:  # told to the thread that waits
            self._error = error
            return
        finally:
            self._started.set()
        self._stop.wait()
        ray.shutdown()

    def _start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address is not None:
            ray.init(address=self._address, **quiet)
            return
        ray.init(
            num_cpus=self._cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
