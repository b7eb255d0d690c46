"""Renders a report as one HTML file: no script, no network, a policy that forbids both.

Captions and URLs were written by strangers. Every printed value loses its control and bidi
characters (`finalize`) and is escaped (autoescape); captions are capped; pictures come only as
`data:` addresses that `sheets.picture` encoded; URLs are text, never links, and shown without
userinfo and query, which may carry secrets. The style sheet is allowed by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipelines.report.dag import lay_out
from pipelines.report.model import Document, Generation, Report
from pipelines.report.plots import draw
from pipelines.report.sheets import TASKS
from pipelines.report.tables import headlines, model_title, number, score_tables

__all__ = ["CAPTION_LENGTH", "clean", "render", "shown_caption", "shown_url"]

CAPTION_LENGTH = 160
_URL_LENGTH = 200
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_MOST_MARKS = 2
"""Combining marks on one letter; more of them paint over the lines around it."""


def clean(text: str) -> str:
    """Without control, format (bidi, zero width) and private characters; line ends stay."""
    kept: list[str] = []
    marks = 0
    for letter in text.replace("\u2028", "\n").replace("\u2029", "\n"):
        category = unicodedata.category(letter)
        marks = marks + 1 if category in {"Mn", "Me"} else 0
        if letter == "\n" or (category not in _HIDDEN and marks <= _MOST_MARKS):
            kept.append(letter)
    return "".join(kept)


def shown_caption(text: str | None, length: int = CAPTION_LENGTH) -> str:
    """A caption on one line, at most `length` characters."""
    line = " ".join(clean((text or "")[: 8 * length].replace("\t", " ")).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def shown_url(url: str | None) -> str:
    """A link as text, without userinfo and query."""
    if not url:
        return "none"
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return shown_caption(url, _URL_LENGTH)
    query = "…" if parts.query else ""
    return shown_caption(urlunsplit((parts.scheme, host, parts.path, query, "")), _URL_LENGTH)


def render(report: Report) -> str:
    """The whole page as HTML."""
    style = files("pipelines.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    documents, generations = _shown(report)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            style=Markup(style),
            style_hash=f"sha256-{digest}",
            headlines=headlines(report),
            tables=score_tables(report),
            charts=[chart for panel in report.panels if (chart := draw(panel))],
            diagram=lay_out(report.stages),
            compute=_compute_ratio(report),
            tasks=TASKS,
            documents=documents,
            generations=generations,
            document_anchors={document.document_id: document.anchor for document in documents},
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipelines.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "caption": shown_caption,
        "url": shown_url,
        "short": lambda digest: digest[:12],
        "count": lambda value: f"{value:,}".replace(",", "\N{THIN SPACE}"),
        "number": number,
        "power": _power,
        "duration": _duration,
        "model_title": model_title,
    }
    return environment


def _finalize(value: Any) -> Any:
    """What happens to every printed value before it is escaped."""
    return clean(value) if type(value) is str else value


def _power(value: float) -> str:
    """1.23·10¹⁵."""
    digits, power = f"{value:.2e}".split("e")
    return f"{digits}·10{str(int(power)).translate(_SUPERSCRIPTS)}"


def _duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _compute_ratio(report: Report) -> float | None:
    """Training compute of the focus, as a multiple of the baseline's."""
    flops = {model.name: model.flops for model in report.models}
    ours, base = flops.get(report.focus), flops.get(report.baseline)
    return ours / base if ours and base else None


def _shown(report: Report) -> tuple[list[Document], list[Generation]]:
    """Every document and generation that some sheet shows or was made from, once."""
    documents = {document.document_id: document for document in report.documents}
    generations: dict[str, Generation] = {}
    for sheet in report.sheets:
        for sample in sheet.samples:
            for document in (sample.truth, *sample.contexts):
                documents.setdefault(document.document_id, document)
            for answer in sample.answers:
                if answer is not None:
                    generations.setdefault(answer.generation_id, answer)
    return list(documents.values()), list(generations.values())
