"""Signals by which the owner of an image says that it must not be used.

Read from the headers of the answer: `X-Robots-Tag` (every line), `tdm-reservation` (TDMRep) and
`Content-Usage` (AIPREF). A table of known directives keeps the colons of dates and of user-agent
prefixes apart. robots.txt is not asked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["NO_SIGNAL", "opt_out_signal"]

NO_SIGNAL = "no_signal"

_AGAINST = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none", "noml"})
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_AGENT = re.compile(r"[a-z0-9_.*\-]+")
_USAGE = re.compile(r"(?:^|,)\s*(train-ai|ai)\s*=\s*n\s*(?:;[^,]*)?(?=,|$)", re.IGNORECASE)


def opt_out_signal(headers: Iterable[tuple[str, str]], *, agent: str) -> str:
    """The first signal against use that is meant for us, or `no_signal`.

    Args:
        headers: name and value of each header line of an answer.
        agent: our product token in lower case; directives for other agents do not bind us.
    """
    for name, value in headers:
        lower = name.lower()
        if lower == "x-robots-tag":
            directive = _robots_directive(value, agent)
            if directive is not None:
                return f"x-robots-tag: {directive}"
        elif lower == "tdm-reservation" and value.strip() == "1":
            return "tdm-reservation: 1"
        elif lower == "content-usage" and (match := _USAGE.search(value)):
            return f"content-usage: {match[1].lower()}=n"
    return NO_SIGNAL


def _robots_directive(value: str, agent: str) -> str | None:
    """The first directive of one line that forbids use by us."""
    meant = True
    for item in value.lower().split(","):
        directive = item.strip()
        name, colon, rest = directive.partition(":")
        if colon and name.strip() not in _VALUED and _AGENT.fullmatch(name.strip()):
            meant = name.strip() in (agent, "*")
            directive = rest.strip()
        if meant and directive in _AGAINST:
            return directive
    return None
