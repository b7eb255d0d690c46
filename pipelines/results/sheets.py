"""Sheets of what generators make of every task, drawn as one PNG a task.

Which prompts are shown is decided by digest (`pipelines.report.sheets.choose_prompts`), before
anybody has seen what became of them.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipelines.report.sheets import TASKS, choose_prompts
from pipelines.report.tables import model_title
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import Store
from storage_schemas.manifest import Manifest

__all__ = ["Drawn", "draw_sheet", "draw_sheets"]

_SIDE, _GAP, _WORDS, _HEAD, _FONT = 72, 4, 132, 34, 11
"""Pixels: of a picture, between cells, of a column of words, of the head, of the letters."""
_WRAP = 22
"""Letters of a line in a column of words."""
_GREY, _BACK, _INK = (160, 160, 160), (255, 255, 255), (30, 30, 30)

Rows = Mapping[str, Mapping[str, Any]]
"""Rows of `generations` by prompt id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A document as a sheet shows it."""

    caption: str
    png: bytes


def draw_sheets(
    store: Store, generations: Mapping[str, Manifest], documents: Manifest, *, count: int = 8
) -> dict[str, bytes]:
    """One PNG for each task that was asked, of the familiar documents.

    Args:
        store: of the artifacts.
        generations: `generations` by the title of their column, in the order shown.
        documents: all that are shown.
        count: prompts of a sheet.

    Returns:
        By task.
    """
    reader = Reader(store)
    rows = {
        title: [r for r in reader.tables(one.tables()).to_pylist() if r["set"] == "familiar"]
        for title, one in generations.items()
    }
    columns = ["document_id", "caption", "image", "outcome"]
    kept = reader.tables(documents.tables("documents"), columns).to_pylist()
    shown = {
        row["document_id"]: Drawn(caption=row["caption"], png=row["image"])
        for row in kept
        if row["outcome"] == "kept"
    }
    sheets = {}
    for task in TASKS:
        by_title = {
            title: {row["prompt_id"]: row for row in found if row["task"] == task}
            for title, found in rows.items()
        }
        asked = {title: found for title, found in by_title.items() if found}
        if asked:
            every = [row for found in asked.values() for row in found.values()]
            prompts = choose_prompts(every, count)
            sheets[task] = draw_sheet(task, prompts, asked, shown)
    return sheets


def draw_sheet(
    task: str, prompts: Sequence[str], columns: Mapping[str, Rows], documents: Mapping[str, Drawn]
) -> bytes:
    """One sheet: a line a prompt, with what is asked, the original, what is read, and the answers.

    Args:
        task: one of `pipelines.report.sheets.TASKS`.
        prompts: ids, in the order shown.
        columns: answers by model, in the order shown.
        documents: all documents shown, by id.
    """
    words = TASKS[task]
    reads = max(len(row["contexts"]) for rows in columns.values() for row in rows.values())
    titles = [words.given, words.truth, *[words.read] * bool(reads), *[""] * (reads - 1)]
    answers = [model_title(title) for title in columns]
    written = task == "caption"
    widths = [_WORDS, _SIDE, *[_SIDE] * reads, *[_WORDS if written else _SIDE] * len(answers)]
    lefts = [sum(widths[:i]) + _GAP * (i + 1) for i in range(len(widths))]
    size = (sum(widths) + _GAP * (len(widths) + 1), _HEAD + (_SIDE + _GAP) * len(prompts))
    sheet = Image.new("RGB", size, _BACK)
    draw = ImageDraw.Draw(sheet)
    for left, width, title in zip(lefts, widths, [*titles, *answers], strict=True):
        room = width * reads if title == words.read else width
        _write(draw, title, left, 2, letters=room // 6)
    for line, prompt in enumerate(prompts):
        top = _HEAD + (_SIDE + _GAP) * line
        for left, cell in zip(lefts, _cells(prompt, reads, columns, documents), strict=True):
            if isinstance(cell, str):
                _write(draw, cell, left, top, letters=_WRAP)
            elif cell is not None:
                sheet.paste(cell, (left, top))
    sink = io.BytesIO()
    sheet.quantize(256).save(sink, "PNG", optimize=True)  # a third of the bytes, looks alike
    return sink.getvalue()


def _cells(
    prompt: str, reads: int, columns: Mapping[str, Rows], documents: Mapping[str, Drawn]
) -> list[str | Image.Image | None]:
    """What stands in a line, from left to right."""
    answers = [rows.get(prompt) for rows in columns.values()]
    known = [row for row in answers if row]
    fed: Sequence[str] = next((row["contexts"] for row in known if row["contexts"]), [])
    truth = documents[prompt]
    original = _picture(truth.png)
    box = next((row["box"] for row in known if row["box"]), None)
    if box:
        scale = _SIDE / Image.open(io.BytesIO(truth.png)).width
        original.paste(_GREY, tuple(round(edge * scale) for edge in box))
    asked = next((row["prompt"] for row in known if row["prompt"]), None)
    contexts = [_picture(documents[one].png) if one in documents else None for one in fed]
    return [
        asked if asked is not None else f"(truth: {truth.caption})",
        original,
        *contexts,
        *[None] * (reads - len(contexts)),
        *[_answer(row) for row in answers],
    ]


def _answer(row: Mapping[str, Any] | None) -> str | Image.Image | None:
    if row is None:
        return None
    return _picture(row["image"]) if row["image"] is not None else str(row["caption"])


def _picture(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as found:
        return found.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def _write(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, *, letters: int) -> None:
    font = ImageFont.load_default(size=_FONT)
    lines = textwrap.wrap(text, max(letters, 8))
    draw.multiline_text((left, top), "\n".join(lines), fill=_INK, font=font, spacing=2)
