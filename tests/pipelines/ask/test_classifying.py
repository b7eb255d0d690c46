"""Classes, as they are written on the command line."""

from __future__ import annotations

import pytest

from pipelines.ask.classifying import read_classes
from pipelines.errors import UsageError


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("dax=a.png",), "two classes or more"),
        (("dax=a.png", "wug"), "LABEL=image.png"),
        (("dax=a.png", "wug= , "), "LABEL=image.png"),
        (("dax=a.png", "dax=b.png"), "there twice"),
        (("dax=a.png,b.png", "wug=c.png"), "dax 2, wug 1"),
    ],
)
def test_what_are_no_classes_is_refused(texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_classes(texts)


def test_classes_are_read_as_they_are_written() -> None:
    assert read_classes(("dax = a.png, b=1.png", "wug=c.png,d.png")) == {
        "dax": ("a.png", "b=1.png"),
        "wug": ("c.png", "d.png"),
    }
