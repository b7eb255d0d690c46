from __future__ import annotations

import base64
import html
import json
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from pipelines.report.page import render
from pipelines.report.sheets import (
    LARGEST_SIDE,
    TASKS,
    choose_prompts,
    make_sheet,
    picture,
    with_hole,
)


def test_pictures_are_encoded_again_without_their_metadata() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "<script>alert(1)</script>")
    sink = BytesIO()
    Image.new("RGB", (1000, 500), "red").save(sink, "PNG", pnginfo=info)
    address = picture(sink.getvalue() + b"<script>alert(1)</script>")
    assert address is not None
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert b"script" not in data
    with Image.open(BytesIO(data)) as image:
        assert image.size == (LARGEST_SIDE, LARGEST_SIDE // 2)
        assert not image.info


def test_what_is_no_png_is_no_picture(made: Any) -> None:
    gif = BytesIO()
    Image.new("P", (2, 2)).save(gif, "GIF")
    torn = made.png("red")[:-40]
    assert [picture(data) for data in (None, b"", b"<svg/>", gif.getvalue(), torn)] == [None] * 5


def test_prompts_are_chosen_by_digest_one_a_concept_first() -> None:
    rows = [{"prompt_id": f"p{i}", "concept": f"c{i % 3}"} for i in range(12)]
    chosen = choose_prompts(rows, 3)
    assert chosen == choose_prompts(rows[::-1], 3)
    assert {int(p[1:]) % 3 for p in chosen} == {0, 1, 2}
    assert choose_prompts(rows, 4)[:3] == chosen
    assert len(choose_prompts(rows, 99)) == 12


def test_a_sheet_keeps_the_order_fed_and_names_missing_answers(made: Any) -> None:
    known = {d.document_id: d for d in (made.document("1", "x", "u"), made.document("2", "y", "u"))}
    one, two = known
    row = {
        "generation_id": "g", "model": "ra", "generator": "c", "task": "image", "memory": "m",
        "k": 2, "contexts": [two, "gone"], "prompt": "x", "prompt_id": one, "seed": 1,
        "sampler": "{}", "image": made.png("red"), "caption": None,
    }  # fmt: skip
    columns = {("ra", "m"): {one: row}, ("vanilla", "none"): {}}
    sheet = make_sheet("image", ("s", "rest"), [one], columns, documents=known, out_of=9)
    (sample,) = sheet.samples
    assert sheet.title == "s: the rest"
    assert sheet.columns == ("RA-CM3", "vanilla CM3")
    assert [c.document_id for c in sample.contexts] == [two, "gone"]
    assert sample.contexts[1].image is None
    assert sample.answers[1] is None


def pixels(address: str) -> Any:
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def test_a_hole_is_grey_and_the_rest_is_as_it_was(made: Any) -> None:
    """A box in an image of 4 x 4, in a picture of 8 x 8."""
    whole = picture(made.png("red"))
    assert whole is not None
    before, after = pixels(whole), pixels(with_hole(whole, (1, 0, 3, 4), (4, 4)))
    hole = np.zeros((8, 8), bool)
    hole[0:8, 2:6] = True
    assert np.array_equal(after[~hole], before[~hole])
    assert len(np.unique(after[hole])) == 1


def test_sheets_of_what_was_drawn_anew_show_the_hole_and_how_the_best_was_chosen(made: Any) -> None:
    truth, supplied = made.document("1", "x", "u"), made.document("2", "y", "u")
    row = {
        "generation_id": "g", "model": "ra", "generator": "c", "task": "edit", "memory": "m",
        "k": 1, "contexts": [supplied.document_id], "prompt": "y", "prompt_id": truth.document_id,
        "seed": 1, "sampler": json.dumps({"candidates": 4, "rank": "clip"}),
        "image": made.png("blue"), "caption": None, "box": [0, 0, 4, 8],
    }  # fmt: skip
    known = {d.document_id: d for d in (truth, supplied)}

    def sheet(task: str, **changed: Any) -> Any:
        columns = {("ra", "m"): {truth.document_id: row | {"task": task} | changed}}
        place = ("s", "")
        return make_sheet(task, place, [truth.document_id], columns, documents=known, out_of=9)

    edit = sheet("edit")
    assert edit.ranking == "best of 4 by clip"
    assert edit.samples[0].hole == with_hole(truth.image, (0, 0, 4, 8), (8, 8))
    plain = sheet("demonstrate", box=None, sampler="{}")
    assert (plain.ranking, plain.samples[0].hole) == ("", None)
    assert sheet("infill", image=None).samples[0].hole is None

    sheets = tuple(sheet(task) for task in TASKS)
    page = html.unescape(render(replace(made.report(), sheets=sheets)))
    for words in TASKS.values():
        assert words.heading in page
        assert words.note in page
    assert page.count("Drawn anew where grey") == 2
    assert page.count(edit.samples[0].hole) == 2
    assert "best of 4 by clip" in page
