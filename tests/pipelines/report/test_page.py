from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report.page import CAPTION_LENGTH, clean, render, shown_caption, shown_url

ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>@import 'http://evil.invalid/x.css'</style>",
    "</title></pre></svg><svg onload=alert(1)><a href='javascript:alert(1)'>x</a>",
    "<iframe src=http://evil.invalid></iframe><base href=http://evil.invalid>",
    "{{ 7 * 7 }}{% include 'page.html.j2' %}",
    "<meta http-equiv=refresh content='0;url=http://evil.invalid'>",
]
TAGS = set(
    re.findall(
        r"\w+",
        """
        html head meta title style body header main footer nav section h1 h2 h3 p a div span dl dt
        dd table thead tbody tr th td ol ul li sup code pre details summary figure figcaption br img
        svg g defs marker path rect line polyline text strong
        """,
    )
)


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.linked_images: list[tuple[str, str]] = []
        self._link = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "a":
            self._link = found.get("href") or ""
        if tag == "img":
            self.linked_images.append((self._link, found["src"] or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._link = ""

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def ids(self) -> set[str | None]:
        return {found["id"] for _, found in self.tags if "id" in found}

    def attributes(self) -> list[tuple[str, str, str]]:
        return [
            (tag, name, value or "") for tag, found in self.tags for name, value in found.items()
        ]


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_captions_and_links_stay_text(made: Any, attack: str) -> None:
    page = Page(render(made.report(caption=attack, url="http://h.invalid/" + attack)))
    assert {tag for tag, _ in page.tags} <= TAGS
    harmless = Page(render(made.report()))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert "49" not in {word.strip() for word in page.words}
    assert attack.split("http", maxsplit=1)[0] in "".join(page.words)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_runs_and_nothing_is_fetched(made: Any, attack: str) -> None:
    for tag, name, value in Page(render(made.report(attack, attack))).attributes():
        assert not name.startswith("on")
        assert name not in {"style", "srcset", "action", "formaction", "background", "ping"}
        if name in {"src", "href", "xlink:href", "data", "poster"}:
            assert value.startswith("#" if tag == "a" else "data:image/png;base64,")
        assert "javascript:" not in value or name == "alt"


def test_policy_forbids_everything_but_inlined_pictures_and_this_style(made: Any) -> None:
    html = render(made.report())
    policy = next(
        found["content"]
        for tag, found in Page(html).tags
        if tag == "meta" and found.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    style = re.search("<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["style-src"] == f"'sha256-{digest}'"
    assert not {"script-src", "connect-src", "font-src", "frame-src"} & rules.keys()
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_every_picture_leads_to_its_lineage(made: Any) -> None:
    report = made.report()
    html = render(report)
    page = Page(html)
    assert len(page.linked_images) == 5
    assert all(link[1:] in page.ids() for link, _ in page.linked_images)
    text = "".join(page.words)
    for sample in (sample for sheet in report.sheets for sample in sheet.samples):
        for document in (sample.truth, *sample.contexts):
            assert document.document_id in text
        for answer in filter(None, sample.answers):
            assert answer.generation_id in text
            assert answer.checkpoint[:12] in text
    assert "http://host.invalid/1.png" in text


def test_numbers_drops_recipe_and_environment_are_on_the_page(made: Any) -> None:
    text = " ".join(" ".join(Page(render(made.report())).words).split())
    shown = ("−10.3 %", "1.90 ×", "27.99", "31.20", "34.90", "11.40", "212", "2.00·10¹⁴", "dB")
    for part in (*shown, "too small", "duplicate row", "how psnr is measured", "1.2.3", "run-1"):
        assert part in text, part
    assert "reused" in text
    assert "2.5 s" in text


def test_an_empty_report_still_renders(made: Any) -> None:
    from dataclasses import replace

    empty = replace(made.report(), scores=(), models=(), sheets=(), panels=(), stages=())
    assert "No comparison in pairs" in render(empty)


@given(st.text(max_size=400))
def test_shown_captions_are_short_single_lines_without_hidden_characters(text: str) -> None:
    import unicodedata

    shown = shown_caption(text)
    assert len(shown) <= CAPTION_LENGTH
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def test_clean_removes_bidi_overrides_and_escapes_of_terminals() -> None:
    assert clean("a\u202egnp.exe\u2066\x1b[31m\x00\ufeffb") == "agnp.exe[31mb"
    assert clean("e" + "\u0301" * 50) == "e\u0301\u0301"
    assert clean("two\nlines") == "two\nlines"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@h.invalid/a.png?X-Amz-Signature=abc#f", "https://h.invalid/a.png?…"),
        ("http://h.invalid/a.png", "http://h.invalid/a.png"),
        ("http://[broken", "http://[broken"),
        (None, "none"),
    ],
)
def test_links_are_shown_without_secrets(url: str | None, shown: str) -> None:
    assert shown_url(url) == shown
