from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

from PIL import Image, PngImagePlugin

from pipelines.report.sheets import LARGEST_SIDE, choose_prompts, make_sheet, picture


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
