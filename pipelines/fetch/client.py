"""One link fetched from a stranger, within limits that the stranger cannot stretch.

The name is resolved once, every address is checked, and the connection goes to a checked address;
each redirect starts over. Proxies, netrc and cookies play no part: urllib3's connections are used
bare. A timer shuts the socket when the whole request has had its time, so that neither headers nor
a body that drip in byte by byte hold a thread.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any
from urllib.parse import urljoin

from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    InvalidChunkLength,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)
from urllib3.exceptions import SSLError as UrllibSSLError
from urllib3.response import HTTPResponse

from pipelines.fetch.connect import (
    Connect,
    Deadline,
    ExpiredError,
    Resolver,
    connection_to,
    resolve_in_time,
)
from pipelines.fetch.consent import NO_SIGNAL, opt_out_signal
from pipelines.fetch.outcomes import Fetched, Outcome, printable
from pipelines.fetch.policy import FetchSettings, RefusedError, Target, check_addresses, check_url

__all__ = ["AGENT", "Resolver", "fetch", "resolve", "user_agent"]

_log = logging.getLogger(__name__)

AGENT = "racm3-pipeline"
"""Our product token: what a site addresses directives to."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RECORDED = (
    "content-type",
    "content-length",
    "content-encoding",
    "last-modified",
    "etag",
    "x-robots-tag",
    "tdm-reservation",
    "tdm-policy",
    "content-usage",
    "retry-after",
    "location",
)
_PIECE = 65_536
_BIGGEST_RATIO = 100
_PAUSE_SECONDS = 0.2


def user_agent(settings: FetchSettings) -> str:
    """Who fetches, and where to complain."""
    return f"{AGENT}/{version('racm3-pipeline')} (+{settings.contact})"


def resolve(host: str, port: int) -> list[str]:
    """Addresses of a name, as the system gives them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def fetch(url: str, settings: FetchSettings, *, resolver: Resolver = resolve) -> Fetched:
    """Fetches one link; never raises for anything that a link or a server does.

    A failure that may pass is tried again, `settings.retries` times.

    Args:
        url: as given by the source.
        settings: limits and the hosts of this machine.
        resolver: looks names up.
    """
    for attempt in range(settings.retries + 1):
        fetched = _Request(settings, resolver).run(url)
        if not (fetched.outcome.is_transient or (fetched.status or 0) in (429, 502, 503, 504)):
            break
        if attempt < settings.retries:
            time.sleep(_PAUSE_SECONDS)
    return fetched


class _Request:
    """One try: all hops of a link under one deadline."""

    def __init__(self, settings: FetchSettings, resolver: Resolver) -> None:
        self._settings, self._resolver = settings, resolver
        self._deadline = Deadline(settings.deadline)
        self._done = Fetched(outcome=Outcome.NETWORK_ERROR)

    def run(self, url: str) -> Fetched:
        """Follows the link to its end."""
        with self._deadline:
            try:
                return self._follow(url)
            except RefusedError as refusal:
                outcome = Outcome.REDIRECT_REFUSED if self._done.redirects else refusal.outcome
                if refusal.outcome is Outcome.DNS_FAILED:
                    outcome = refusal.outcome
                return self._done.failed(outcome, str(refusal))
            except Exception as error:  # a stranger's bytes must not end a shard
                return self._done.failed(self._outcome_of(error), _described(error))

    def _outcome_of(self, error: Exception) -> Outcome:
        if self._deadline.expired or isinstance(error, ExpiredError):
            return Outcome.TIMEOUT
        cause = _cause(error)
        for kinds, outcome in _OUTCOMES:
            if isinstance(cause, kinds):
                return outcome
        if not isinstance(error, OSError | HTTPError | http.client.HTTPException | ValueError):
            _log.warning("fetching failed in an unforeseen way: %r", error)
        return Outcome.NETWORK_ERROR

    def _follow(self, url: str) -> Fetched:
        target = check_url(url, self._settings)
        while True:
            with self._ask(target) as response:
                self._note(target, response)
                location = response.headers.get("location")
                if response.status not in _REDIRECTS or not location:
                    return self._take(response)
            if len(self._done.redirects) >= self._settings.max_redirects:
                return self._done.failed(
                    Outcome.TOO_MANY_REDIRECTS, f"more than {self._settings.max_redirects}"
                )
            target = self._redirected(target, location)

    def _redirected(self, target: Target, location: str) -> Target:
        self._done = replace(self._done, redirects=(*self._done.redirects, target.url))
        following = check_url(urljoin(target.url, _location_text(location)), self._settings)
        if target.scheme == "https" and following.scheme == "http":
            raise RefusedError(Outcome.REDIRECT_REFUSED, "it leads from https to http")
        return following

    def _note(self, target: Target, response: HTTPResponse) -> None:
        """Records an answer before anything is decided by it."""
        lines = [(str(name), str(value)) for name, value in response.headers.iteritems()]
        self._done = replace(
            self._done,
            final_url=target.url,
            status=response.status,
            consent=opt_out_signal(lines, agent=AGENT),
            headers=tuple(
                printable(f"{name.lower()}: {value}")
                for name, value in sorted(lines)
                if name.lower() in _RECORDED
            ),
        )

    def _take(self, response: HTTPResponse) -> Fetched:
        """Reads the body of the last answer, if it may be read."""
        if response.status != 200:
            return self._done.failed(Outcome.HTTP_ERROR, f"status {response.status}")
        if self._done.consent != NO_SIGNAL and self._settings.honor_opt_out:
            return self._done.failed(Outcome.OPTED_OUT, str(self._done.consent))
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._settings.max_bytes:
            return self._done.failed(Outcome.TOO_LARGE, f"{announced} bytes announced")
        body = self._read(response)
        if body is None:
            return self._done.failed(
                Outcome.TOO_LARGE, f"more than {self._settings.max_bytes} bytes"
            )
        if not body:
            return self._done.failed(Outcome.EMPTY, "no bytes")
        return replace(self._done, outcome=Outcome.KEPT, body=body)

    def _read(self, response: HTTPResponse) -> bytes | None:
        """The body, decoded if it came encoded although we asked for none; None: over the cap."""
        pieces, size = [], 0
        while piece := response.read(_PIECE, decode_content=False):
            self._deadline.check()
            size += len(piece)
            if size > self._settings.max_bytes:
                return None
            pieces.append(piece)
        self._deadline.check()  # a socket that the timer shut reads as the end of the body
        body = b"".join(pieces)
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("", "identity") or not body:
            return body
        return _decoded(body, encoding, self._settings.max_bytes)

    # --- connecting -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _ask(self, target: Target) -> Iterator[HTTPResponse]:
        """Sends the request of one hop; yields the answer with its body unread."""
        connection = self._connection(target)
        try:
            connection.request(
                "GET",
                target.path,
                headers={
                    "Host": target.host_header,
                    "User-Agent": user_agent(self._settings),
                    "Accept": "image/*,*/*;q=0.5",
                    "Accept-Encoding": "identity",
                    "Connection": "close",
                },
                preload_content=False,
                decode_content=False,
                enforce_content_length=True,
            )
            if connection.sock is not None:
                connection.sock.settimeout(self._deadline.at_most(self._settings.read_timeout))
            response: Any = connection.getresponse()
            self._deadline.check()
            yield response
        finally:
            connection.close()
            self._deadline.release()

    def _connection(self, target: Target) -> HTTPConnection:
        addresses, port = self._addresses(target)
        connect = Connect(addresses, port, self._settings, self._deadline)
        return connection_to(target, connect)

    def _addresses(self, target: Target) -> tuple[list[str], int]:
        """Checked addresses; those that the settings prescribe are taken as they are."""
        if target.fixed is not None:
            return [target.fixed[0]], target.fixed[1]
        limit = self._deadline.at_most(self._settings.connect_timeout)
        try:
            found = resolve_in_time(self._resolver, target.host, target.port, limit)
        except (OSError, UnicodeError) as error:
            raise RefusedError(Outcome.DNS_FAILED, f"{target.host}: {error}") from error
        return check_addresses(found), target.port


_OUTCOMES: tuple[tuple[tuple[type[Exception], ...], Outcome], ...] = (
    ((NewConnectionError, UrllibSSLError, ssl.SSLError), Outcome.CONNECT_FAILED),
    ((ConnectTimeoutError,), Outcome.TIMEOUT),  # the base of NewConnectionError
    ((ReadTimeoutError, TimeoutError), Outcome.TIMEOUT),
    ((IncompleteRead, InvalidChunkLength, http.client.IncompleteRead), Outcome.TRUNCATED),
    ((zlib.error,), Outcome.TRUNCATED),
)


def _cause(error: Exception) -> Exception:
    """What urllib3 wrapped in a `ProtocolError`, or the error itself."""
    inner = error.args[1] if isinstance(error, ProtocolError) and len(error.args) > 1 else None
    return inner if isinstance(inner, Exception) else error


def _described(error: Exception) -> str:
    """Kind and message of an error."""
    cause = _cause(error)
    said = str(cause)
    if isinstance(cause, NewConnectionError):
        said = said.split(": ", 1)[-1]  # without the connection's own description
    return f"{type(cause).__name__}: {said}"


def _location_text(location: str) -> str:
    """A `Location` header as its sender meant it: UTF-8 in bytes that were read as Latin-1."""
    try:
        return location.encode("latin-1").decode("utf-8").strip()
    except UnicodeError:
        return location.strip()


def _decoded(body: bytes, encoding: str, limit: int) -> bytes | None:
    """Undoes gzip or deflate within a size and a ratio; None: more than that.

    Raises:
        zlib.error: when the stream is broken or cut short.
        ValueError: for another encoding.
    """
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"content encoding {printable(encoding, 40)} was not asked for")
    limit = min(limit, _BIGGEST_RATIO * len(body))
    decoder = zlib.decompressobj(wbits=47 if "gzip" in encoding else 15)
    decoded = decoder.decompress(body, limit + 1)
    if len(decoded) > limit:
        return None
    if not decoder.eof:
        raise zlib.error("the encoded body is cut short")
    return decoded
