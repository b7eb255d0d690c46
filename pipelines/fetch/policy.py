"""Where a link may lead: one policy for the link itself and for every redirect.

`check_url` judges the spelling, `check_addresses` what the name resolved to. The networks that are
refused are listed here one by one, after the IANA special-purpose registries: `is_global` of the
standard library let through, among others, multicast, NAT64 and 6to4 forms of private addresses.
An IPv6 address that carries an IPv4 address is judged by both.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from pipelines.fetch.outcomes import Outcome, printable

__all__ = ["FetchSettings", "RefusedError", "Target", "check_addresses", "check_url"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LONGEST_URL = 2048
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.\-]*):")
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_\-.]*[a-z0-9_])?\.?")
_NUMERIC_LABEL = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)")

_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared between carriers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local: cloud metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_REFUSED_V6 = tuple(  # inside 2000::/3; everything outside of it is refused, but NAT64 and mapped
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID, anycast services
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchSettings:
    """How this machine fetches: its limits, who it says it is, and which hosts are its own.

    A setting, never part of a fingerprint. Picklable: it crosses to workers.
    """

    host_map: Mapping[str, str] = field(default_factory=dict)
    """Host name in a URL -> `address:port` it is fetched from, such as a server of the demo or of
    a test; the URL stays as it is wherever it is stored."""
    allow: tuple[str, ...] = ()
    """`address:port` that may be named in a URL although the policy refuses it."""
    contact: str = "https://github.com/racm3-pipeline"
    """Where the owner of a site reads who fetches, and complains."""
    threads: int = 16
    """Links fetched at the same time, by one worker."""
    connect_timeout: float = 5.0
    """Seconds to resolve a name, and to connect."""
    read_timeout: float = 10.0
    """Seconds without a byte."""
    deadline: float = 20.0
    """Seconds for a whole request, redirects included."""
    max_bytes: int = 20_000_000
    """Longest body."""
    max_redirects: int = 5
    """Most redirects followed."""
    retries: int = 1
    """Further tries after a failure that may pass; never after a refusal or a timeout."""
    honor_opt_out: bool = True
    """Whether a signal against use stops the fetch; it is recorded in any case."""

    def __post_init__(self) -> None:
        limits = (self.threads, self.connect_timeout, self.read_timeout, self.deadline)
        if min(*limits, self.max_bytes) <= 0 or min(self.max_redirects, self.retries) < 0:
            raise ValueError("fetch settings: limits must be positive; correct the settings")
        for netloc in (*self.host_map.values(), *self.allow):
            _split_netloc(netloc)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A link that passed: what to connect to and what to ask for."""

    url: str
    """As normalised: percent-encoded, IDNA host, no fragment."""
    scheme: str
    host: str
    """Lower case; an IPv6 address without brackets."""
    port: int
    path: str
    """Path and query: the request target."""
    fixed: tuple[str, int] | None = None
    """Address and port that the settings prescribe; None: resolve `host` and check."""

    @property
    def host_header(self) -> str:
        """What the server is asked for."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


class RefusedError(Exception):
    """A link that is not followed."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(printable(detail))
        self.outcome = outcome


def check_url(url: str, settings: FetchSettings) -> Target:
    """Judges the spelling of a link and, where the host is an address, the address.

    Raises:
        RefusedError: with the outcome and what is wrong.
    """
    _check_spelling(url)
    parsed = _parse(url)
    scheme = str(parsed.scheme)
    host = _checked_host(parsed.host)
    port = parsed.port or _DEFAULT_PORTS[scheme]
    path = parsed.request_uri
    fixed = _fixed(host, port, parsed.port, settings)
    if fixed is None:
        if port != _DEFAULT_PORTS[scheme]:
            raise RefusedError(Outcome.REFUSED_PORT, f"port {port} is not that of {scheme}")
        _check_literal(host)
    normal = parsed._replace(path=parsed.path or "/", fragment=None).url
    return Target(url=normal, scheme=scheme, host=host, port=port, path=path, fixed=fixed)


def check_addresses(addresses: Iterable[str]) -> list[str]:
    """All addresses of a name, when every one of them is public.

    One private address among public ones refuses the name: which of them the next look-up gives
    is the name's owner's choice.

    Raises:
        RefusedError: when there is none, or one is not public.
    """
    found = list(dict.fromkeys(addresses))
    if not found:
        raise RefusedError(Outcome.DNS_FAILED, "the name has no address")
    for text in found:
        if _is_refused(ipaddress.ip_address(text)):
            raise RefusedError(Outcome.REFUSED_ADDRESS, f"{text} is not a public address")
    return found


# --- spelling -------------------------------------------------------------------------------


def _check_spelling(url: str) -> None:
    if len(url) > _LONGEST_URL:
        raise RefusedError(Outcome.REFUSED_URL, f"it is longer than {_LONGEST_URL} characters")
    scheme = _SCHEME.match(url)
    if scheme is None or scheme[1].lower() not in _DEFAULT_PORTS:
        named = scheme[1] if scheme else "none"
        raise RefusedError(Outcome.REFUSED_SCHEME, f"scheme {named} is neither http nor https")
    if any(ord(char) <= 0x20 or 0x7F <= ord(char) <= 0xA0 or char == "\\" for char in url):
        raise RefusedError(Outcome.REFUSED_URL, "it holds a control character, space or backslash")
    rest = url[scheme.end() :]
    if not rest.startswith("//"):
        raise RefusedError(Outcome.REFUSED_URL, "no host follows the scheme")
    authority = re.split(r"[/?#]", rest[2:], maxsplit=1)[0]
    if "@" in authority or "%" in authority:
        raise RefusedError(Outcome.REFUSED_URL, "user information or an escape stands by the host")


def _parse(url: str) -> Url:
    try:
        url.encode("utf-8")
        return parse_url(url)
    except (LocationParseError, UnicodeError, ValueError) as error:
        raise RefusedError(Outcome.REFUSED_URL, f"it cannot be parsed: {error}") from error


def _checked_host(host: str | None) -> str:
    """The host in lower case, brackets off; odd spellings of addresses are refused."""
    if not host:
        raise RefusedError(Outcome.REFUSED_URL, "it has no host")
    if host.startswith("["):
        try:
            address = ipaddress.IPv6Address(host[1:-1])
            if address.scope_id is not None:
                raise ValueError("zone")
            return str(address)
        except ValueError as error:
            raise RefusedError(Outcome.REFUSED_URL, f"{host} is no IPv6 address") from error
    if not host.isascii() or len(host) > 253 or ".." in host or not _HOST.fullmatch(host.lower()):
        raise RefusedError(Outcome.REFUSED_URL, f"{host} is no host name")
    host = host.lower()
    if _NUMERIC_LABEL.fullmatch(host.rstrip(".").rsplit(".", 1)[-1]):
        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            raise RefusedError(Outcome.REFUSED_URL, f"{host} is an odd spelling of IPv4") from error
    return host


def _fixed(
    host: str, port: int, named: int | None, settings: FetchSettings
) -> tuple[str, int] | None:
    mapped = settings.host_map.get(host)
    if mapped is not None and named is None:
        return _split_netloc(mapped)
    netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return (host, port) if netloc in settings.allow else None


def _split_netloc(netloc: str) -> tuple[str, int]:
    host, _, port = netloc.rpartition(":")
    host = host.strip("[]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError as error:
        raise ValueError(
            f"fetch settings: {netloc!r} is not address:port, such as 127.0.0.1:8080"
        ) from error
    if not 0 < number < 65536:
        raise ValueError(f"fetch settings: {netloc!r} has no valid port")
    return host, number


# --- addresses ------------------------------------------------------------------------------


def _check_literal(host: str) -> None:
    """Refuses a host that is itself an address and not public."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if _is_refused(address):
        raise RefusedError(Outcome.REFUSED_ADDRESS, f"{host} is not a public address")


def _is_refused(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return any(address in network for network in _REFUSED_V4)
    if any(_is_refused(inner) for inner in _inner_addresses(address)):
        return True
    if address in _NAT64 or address in _MAPPED:
        return False  # as public as the IPv4 address inside
    if address not in _UNICAST_V6:
        return True
    return any(address in network for network in _REFUSED_V6)


def _inner_addresses(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """IPv4 addresses that an IPv6 address leads to."""
    number = int(address)
    low = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address in _MAPPED or address in _NAT64:
        return [low]
    if address in _SIX_TO_FOUR:
        return [ipaddress.IPv4Address((number >> 80) & 0xFFFFFFFF)]
    return []
