"""What can become of one link: a closed list, and the record of one fetch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

__all__ = ["Fetched", "Outcome", "printable"]

_LONGEST_ERROR = 300


class Outcome(StrEnum):
    """The one reason that a row of `images` carries."""

    KEPT = "kept"
    """The body arrived whole; whether it is an image is judged when it is decoded."""
    REFUSED_SCHEME = "refused_scheme"
    """Neither http nor https."""
    REFUSED_ADDRESS = "refused_address"
    """The host is, or resolves to, an address that is not public."""
    REFUSED_PORT = "refused_port"
    """Not the scheme's own port."""
    REFUSED_URL = "refused_url"
    """User information, control characters, an odd spelling of an address, too long, ..."""
    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    """Nobody answered, or TLS could not be agreed on."""
    TIMEOUT = "timeout"
    """A single wait or the whole request took too long."""
    TOO_LARGE = "too_large"
    """More bytes than the cap."""
    HTTP_ERROR = "http_error"
    """An answer that is not 200; its status stands beside it."""
    REDIRECT_REFUSED = "redirect_refused"
    """A redirect to where no link may lead, or from https to http."""
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TRUNCATED = "truncated"
    """Fewer bytes than were announced."""
    EMPTY = "empty"
    """An answer of no bytes."""
    OPTED_OUT = "opted_out"
    """The owner does not want it used; the body was not read."""
    NETWORK_ERROR = "network_error"
    """The connection broke, or the answer was no HTTP."""
    LOST_BY_DOWNLOADER = "lost_by_downloader"
    """img2dataset did not hand the row back; the row itself is not lost."""

    @property
    def is_transient(self) -> bool:
        """Whether another try may end otherwise."""
        return self in _TRANSIENT


_TRANSIENT = frozenset(
    {Outcome.DNS_FAILED, Outcome.CONNECT_FAILED, Outcome.NETWORK_ERROR, Outcome.TRUNCATED}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """Everything that is known of one link after the attempt to fetch it."""

    outcome: Outcome
    final_url: str | None = None
    """Address of the last answer, as normalised; None when nothing was asked."""
    status: int | None = None
    """HTTP status of the last answer."""
    redirects: tuple[str, ...] = ()
    """Addresses that answered with a redirect, in order."""
    consent: str | None = None
    """`no_signal`, or the signal found; None when there was no answer to read one from."""
    headers: tuple[str, ...] = ()
    """Selected headers of the last answer, `name: value`."""
    body: bytes | None = None
    """As received; only with outcome `kept`."""
    error: str | None = None
    """Detail for people; printable, at most 300 characters."""

    def failed(self, outcome: Outcome, error: str) -> Fetched:
        """The same record with a reason and without a body."""
        return replace(self, outcome=outcome, error=printable(error), body=None)


def printable(text: str, longest: int = _LONGEST_ERROR) -> str:
    """Text from strangers without control characters and lone surrogates, cut to a length."""
    clean = text.encode("utf-8", errors="replace").decode("utf-8")
    return "".join(char if char.isprintable() else "?" for char in clean[:longest])
