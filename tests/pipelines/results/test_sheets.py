"""Sheets of tasks: what stands where."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.records import image_png
from pipelines.report.sheets import TASKS
from pipelines.results.sheets import Drawn, draw_sheet

RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)


def png(colour):
    return image_png(np.full((64, 64, 3), colour, np.uint8))


DOCUMENTS = {
    "own": Drawn(caption="a red square", png=png(RED)),
    "one": Drawn(caption="green", png=png(GREEN)),
}


def row(task, **values):
    empty = {"task": task, "prompt_id": "own", "contexts": ["one"], "box": None, "image": None}
    return empty | {"prompt": "a red square", "caption": None} | values


def sheet(task, *rows, prompts=("own",)):
    columns = {
        name: {one["prompt_id"]: one} for name, one in zip(("ra", "vanilla"), rows, strict=False)
    }
    data = draw_sheet(task, prompts, columns, DOCUMENTS)
    assert data == draw_sheet(task, prompts, columns, DOCUMENTS)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def colours(pixels):
    """Colours of pictures from left to right: those that fill a square of 60 pixels."""
    middle = pixels[70]
    found = []
    for at in range(0, len(middle) - 60, 4):
        part = middle[at : at + 60]
        if (part == part[0]).all() and tuple(part[0]) in (RED, GREEN, BLUE):
            found.append(tuple(int(v) for v in part[0]))
    return [c for i, c in enumerate(found) if i == 0 or found[i - 1] != c]


def test_the_original_then_what_is_read_then_the_answers():
    drawn = row("image", image=png(BLUE))
    bare = row("image", image=png(GREEN), contexts=[])
    assert colours(sheet("image", drawn, bare)) == [RED, GREEN, BLUE, GREEN]


def test_what_was_drawn_anew_is_grey_in_the_original():
    pixels = sheet("infill", row("infill", image=png(BLUE), box=[0, 32, 64, 64]))
    original = pixels[34:106, 140:212]
    assert (original[:30] == RED).all(axis=2).mean() > 0.9
    assert (original[40:] == (160, 160, 160)).all(axis=2).mean() > 0.9


def test_captions_are_written_out():
    one, two = (sheet("caption", row("caption", caption=text)) for text in ("a bus", "no bus"))
    assert one.shape == two.shape
    assert (one != two).any()
    assert (one[34:, -132:] < 100).any(), "letters"


@pytest.mark.parametrize("task", TASKS)
def test_a_generator_without_an_answer_leaves_its_place_empty(task):
    answer = {"caption": "x"} if task == "caption" else {"image": png(BLUE)}
    ours = row(task, **answer)
    pixels = sheet(task, ours, ours | {"prompt_id": "other"})
    assert (pixels[34:, -70:] == 255).all()
