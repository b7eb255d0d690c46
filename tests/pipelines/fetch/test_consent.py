"""Signals against use, line by line."""

from __future__ import annotations

import pytest

from pipelines.fetch.consent import NO_SIGNAL, opt_out_signal


@pytest.mark.parametrize(
    ("name", "value", "signal"),
    [
        ("X-Robots-Tag", "noai", "x-robots-tag: noai"),
        ("x-robots-tag", "NoImageAI", "x-robots-tag: noimageai"),
        ("X-Robots-Tag", "nofollow, noindex", "x-robots-tag: noindex"),
        ("X-Robots-Tag", "none", "x-robots-tag: none"),
        ("X-Robots-Tag", "noml", "x-robots-tag: noml"),
        ("X-Robots-Tag", "otherbot: noai", NO_SIGNAL),
        ("X-Robots-Tag", "otherbot: nofollow, noai", NO_SIGNAL),
        ("X-Robots-Tag", "otherbot: noai, racm3-pipeline: noai", "x-robots-tag: noai"),
        ("X-Robots-Tag", "*: noai", "x-robots-tag: noai"),
        ("X-Robots-Tag", "unavailable_after: 25 Jun 2010 15:00:00 PST, noai", "x-robots-tag: noai"),
        ("X-Robots-Tag", "max-snippet: 5, noimageindex", "x-robots-tag: noimageindex"),
        ("X-Robots-Tag", "all", NO_SIGNAL),
        ("X-Robots-Tag", "", NO_SIGNAL),
        ("X-Robots-Tag", ":,::,", NO_SIGNAL),
        ("tdm-reservation", " 1 ", "tdm-reservation: 1"),
        ("tdm-reservation", "0", NO_SIGNAL),
        ("Content-Usage", "train-ai=n", "content-usage: train-ai=n"),
        ("Content-Usage", "search=y, train-ai = n", "content-usage: train-ai=n"),
        ("Content-Usage", "train-ai=y", NO_SIGNAL),
        ("X-Other", "noai", NO_SIGNAL),
    ],
)
def test_a_signal_binds_us_when_it_is_meant_for_us(name, value, signal):
    assert opt_out_signal([("Date", "x"), (name, value)], agent="racm3-pipeline") == signal


def test_every_line_is_read():
    lines = [("X-Robots-Tag", "otherbot: noindex"), ("X-Robots-Tag", "noai")]
    assert opt_out_signal(lines, agent="racm3-pipeline") == "x-robots-tag: noai"
