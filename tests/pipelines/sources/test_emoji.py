from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from pipelines.sources import emoji
from pipelines.sources.emoji import load_corpus, prepare_corpus, render_drawing

pytest.importorskip("resvg_py")

CODES = ["1f1e7-1f1f9", "1f44b", "1f44b-1f3fe", "1f1f3-1f1f4", "1f1f8-1f1ef"]
"""Bhutan, waving hands, and Norway beside Svalbard, which are drawn alike."""


@pytest.fixture
def few_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    files = emoji._drawing_files()
    few = {drawing: {c: paths[c] for c in CODES} for drawing, paths in files.items()}
    monkeypatch.setattr(emoji, "_drawing_files", lambda: few)


def test_the_packages_share_thousands_of_emoji() -> None:
    files = emoji._drawing_files()
    cldr, names = emoji._captions()
    common = set(files["twemoji"]) & set(files["openmoji"]) & set(cldr)
    captioned = [code for code in common if emoji.unicode_caption(code, names)]
    assert len(captioned) > 3700
    assert sum(emoji.is_flag(code) for code in captioned) > 250


def test_corpus_has_both_drawings_and_two_captions(few_drawings: None, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    corpus = prepare_corpus(
        tmp_path, processes=1, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (10, 10)
    assert [d.code for d in corpus.documents] == [c for c in sorted(CODES) for _ in range(2)]
    by_path = {d.path: d for d in corpus.documents}
    bhutan = by_path["twemoji/1f1e7-1f1f9.png"]
    assert bhutan.caption == "flag: Bhutan"
    assert bhutan.group == "flags"
    assert bhutan.url == "http://emoji.invalid/twemoji/1f1e7-1f1f9.png"
    assert by_path["openmoji/1f1e7-1f1f9.png"].caption == "Bhutan Flag"
    assert by_path["openmoji/1f44b-1f3fe.png"].concept == "1f44b"
    assert by_path["openmoji/1f44b-1f3fe.png"].group is None
    assert by_path["openmoji/1f44b-1f3fe.png"].category == "hand-fingers-open"
    assert by_path["twemoji/1f1f8-1f1ef.png"].category == "country-flag"
    assert by_path["twemoji/1f1f8-1f1ef.png"].concept == by_path["twemoji/1f1f3-1f1f4.png"].concept
    for document in corpus.documents:
        with Image.open(corpus.folder / document.path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))


def test_corpus_is_cached_and_equal_when_built_again(few_drawings: None, tmp_path: Path) -> None:
    first = prepare_corpus(tmp_path / "a", processes=1)
    calls: list[int] = []
    again = prepare_corpus(tmp_path / "a", processes=1, progress=lambda *_: calls.append(1))
    other = prepare_corpus(tmp_path / "b", processes=1)
    assert calls == []
    assert again == first == load_corpus(first.folder)
    assert other.folder.name == first.folder.name
    for document in first.documents:
        path = document.path
        assert (first.folder / path).read_bytes() == (other.folder / path).read_bytes()
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == [first.folder.name]


def test_a_failed_build_leaves_nothing(few_drawings: None, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_corpus(tmp_path, processes=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_processes_change_nothing(few_drawings: None, tmp_path: Path) -> None:
    here = prepare_corpus(tmp_path / "a", processes=1)
    there = prepare_corpus(tmp_path / "b", processes=2)
    assert here.documents == there.documents


def test_a_drawing_is_cropped_and_centred_on_white() -> None:
    drawing = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
    drawing.paste((255, 0, 0, 255), (10, 30, 50, 50))  # 40 wide, 20 high
    file = io.BytesIO()
    drawing.save(file, format="PNG")
    with Image.open(io.BytesIO(render_drawing(file.getvalue(), size=40))) as image:
        assert image.getpixel((20, 20)) == (255, 0, 0)
        assert image.getpixel((0, 20)) == (255, 0, 0)
        assert image.getpixel((20, 2)) == (255, 255, 255)
        assert image.getpixel((20, 37)) == (255, 255, 255)


def test_svg_is_drawn() -> None:
    svg = b'<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">'
    svg += b'<rect x="20" y="20" width="30" height="30" fill="#00ff00"/></svg>'
    with Image.open(io.BytesIO(render_drawing(svg))) as image:
        assert image.getpixel((32, 32)) == (0, 255, 0)
        assert image.getpixel((2, 2)) == (0, 255, 0)


def test_an_empty_drawing_is_refused() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(file, format="PNG")
    with pytest.raises(ValueError, match="empty"):
        render_drawing(file.getvalue())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emoji, "PACKAGES", ("no-such-package",))
    with pytest.raises(ValueError, match=r"'no-such-package'.*extra 'demo'"):
        prepare_corpus(tmp_path)
