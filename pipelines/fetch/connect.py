"""Sockets to checked addresses, under a deadline that covers the whole request."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from pipelines.fetch.outcomes import Outcome
from pipelines.fetch.policy import FetchSettings, RefusedError, Target

__all__ = ["Connect", "Deadline", "ExpiredError", "Resolver", "connection_to", "resolve_in_time"]

Resolver = Callable[[str, int], Sequence[str]]
"""(host, port) -> addresses; raises OSError."""


class ExpiredError(Exception):
    """The whole request has had its time."""


class Deadline:
    """Shuts the socket of a request when the request has had its time."""

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._guard: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self.release()

    def guard(self, sock: socket.socket) -> None:
        """Takes a second handle of a connection: TLS replaces the first one."""
        with self._lock:
            if not self.expired:
                self._guard = sock.dup()
        self.check()

    def release(self) -> None:
        """Lets go of the connection."""
        with self._lock:
            if self._guard is not None:
                self._guard.close()
                self._guard = None

    def check(self) -> None:
        """Raises `ExpiredError` when the time is over."""
        if self.expired or time.monotonic() >= self._end:
            self.expired = True
            raise ExpiredError("the whole request took too long")

    def at_most(self, seconds: float) -> float:
        """So many seconds, or those that are left."""
        self.check()
        return max(0.001, min(seconds, self._end - time.monotonic()))

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._guard is not None:
                with contextlib.suppress(OSError):
                    self._guard.shutdown(socket.SHUT_RDWR)


class Connect:
    """Opens the socket of a hop to one of its checked addresses."""

    def __init__(
        self, addresses: list[str], port: int, settings: FetchSettings, deadline: Deadline
    ) -> None:
        self._addresses, self._port = addresses, port
        self._settings, self._deadline = settings, deadline

    def __call__(self, connection: HTTPConnection) -> socket.socket:
        """Connects; raises urllib3's errors, or `RefusedError` when it led elsewhere."""
        problem: OSError | None = None
        for address in self._addresses[:2]:
            limit = self._deadline.at_most(self._settings.connect_timeout)
            try:
                sock = socket.create_connection((address, self._port), timeout=limit)
            except OSError as error:
                problem = error
                continue
            if sock.getpeername()[0] != address:
                sock.close()
                raise RefusedError(Outcome.REFUSED_ADDRESS, f"{address} led elsewhere")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(self._deadline.at_most(self._settings.read_timeout))
            try:
                self._deadline.guard(sock)
            except ExpiredError:
                sock.close()
                raise
            return sock
        if isinstance(problem, TimeoutError):
            raise ConnectTimeoutError(connection, "connecting took too long")
        raise NewConnectionError(connection, f"cannot connect: {problem}")


class _Plain(HTTPConnection):
    """HTTP to a checked address."""

    def __init__(self, target: Target, connect: Connect) -> None:
        super().__init__(target.host, port=target.port)
        self._checked_connect = connect

    def _new_conn(self) -> socket.socket:
        return self._checked_connect(self)


class _Tls(HTTPSConnection):
    """HTTPS to a checked address; the certificate must be that of the name in the link."""

    def __init__(self, target: Target, connect: Connect) -> None:
        super().__init__(target.host, port=target.port, ssl_context=ssl.create_default_context())
        self._checked_connect = connect

    def _new_conn(self) -> socket.socket:
        return self._checked_connect(self)


def connection_to(target: Target, connect: Connect) -> HTTPConnection:
    """An unopened connection that will open its socket by `connect` and nothing else."""
    return _Plain(target, connect) if target.scheme == "http" else _Tls(target, connect)


def resolve_in_time(resolver: Resolver, host: str, port: int, seconds: float) -> Sequence[str]:
    """Looks a name up in a thread of its own: the system's resolver cannot be interrupted.

    Raises:
        OSError: when it fails, or takes longer.
    """
    answers: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(resolver(host, port))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("looking the name up took too long") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
