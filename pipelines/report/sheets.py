"""Which prompts are shown, and their rows as what the page shows.

Prompts are chosen by digest before anyone looks at a result, at most one a concept as long as
there are enough, so that the sheets show what a model does and not what it does best.
"""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from pipelines.report.model import Document, Generation, Sample, Sheet
from pipelines.report.tables import model_title, slice_title
from storage_schemas.fingerprint import digest_of

__all__ = [
    "REST",
    "TASKS",
    "TaskWords",
    "choose_prompts",
    "generation_of",
    "make_sheet",
    "picture",
    "slice_of",
    "with_hole",
]

LARGEST_SIDE = 192
"""Pixels; larger pictures are reduced before they are put into the page."""
REST = "rest"
_GREY = (160, 160, 160)


class TaskWords(NamedTuple):
    """What a sheet of a task is called, and its columns."""

    heading: str
    given: str
    read: str
    truth: str
    note: str = ""


TASKS: dict[str, TaskWords] = {
    "image": TaskWords("Drawn from a caption", "Caption given", "Contexts read", "Truth"),
    "caption": TaskWords("Written from an image", "Image given", "Contexts read", "Truth"),
    "infill": TaskWords("Filled in where it is grey", "Caption given", "Contexts read", "Original"),
    "edit": TaskWords(
        "Edited under a supplied document",
        "Caption asked for",
        "Document supplied",
        "Original",
        "Supplied is the last document that the original's picture retrieved and that has another "
        "caption.",
    ),
    "demonstrate": TaskWords(
        "Drawn after demonstrations",
        "Caption given",
        "Demonstrations",
        "Truth",
        "Demonstrations are what a person picks who has seen the truth: its own picture "
        "retrieved them.",
    ),
}
"""Tasks that have a sheet, in the order of the page."""

Column = tuple[str, str]
"""(model, memory), as the inputs are named."""


def picture(data: bytes | None) -> str | None:
    """A stored PNG, decoded and encoded again, as a `data:` address; None when it is no PNG."""
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as found:
            image = found.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return _address(image)


def with_hole(address: str, box: Sequence[int], size: tuple[int, int]) -> str:
    """A picture of ours with a box greyed.

    Args:
        address: as `picture` gives it.
        box: left, top, right, bottom in pixels of an image of `size`.
        size: width and height of the image that the box was measured in.
    """
    data = base64.b64decode(address.removeprefix(_ADDRESS))
    with Image.open(io.BytesIO(data), formats=["PNG"]) as found:
        image = found.convert("RGB")
    across, down = image.width / size[0], image.height / size[1]
    left, top, right, bottom = box
    edges = (left * across, top * down, right * across, bottom * down)
    image.paste(_GREY, (round(edges[0]), round(edges[1]), round(edges[2]), round(edges[3])))
    return _address(image)


_ADDRESS = "data:image/png;base64,"


def _address(image: Image.Image) -> str:
    sink = io.BytesIO()
    image.save(sink, "PNG", optimize=True)
    return _ADDRESS + base64.b64encode(sink.getvalue()).decode("ascii")


def slice_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """(set, group) of a row of `generations`; what is in no group is the rest."""
    return row["set"] or "", row["group"] or ""


def choose_prompts(rows: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Ids of at most `count` prompts: by digest, one a concept first."""
    concepts = {row["prompt_id"]: row["concept"] or row["prompt_id"] for row in rows}
    order = sorted(concepts, key=lambda prompt: digest_of(["shown", prompt]))
    seen: defaultdict[str, int] = defaultdict(int)
    rank = {}
    for prompt in order:
        rank[prompt] = seen[concepts[prompt]]
        seen[concepts[prompt]] += 1
    return sorted(order, key=lambda prompt: rank[prompt])[:count]


def generation_of(row: Mapping[str, Any]) -> Generation:
    """A row of `generations`, its picture encoded again."""
    return Generation(
        generation_id=row["generation_id"],
        model=row["model"],
        checkpoint=row["generator"],
        task=row["task"],
        memory=row["memory"] or "",
        k=row["k"],
        contexts=tuple(row["contexts"]),
        prompt_id=row["prompt_id"] or "",
        seed=row["seed"],
        sampler=row["sampler"],
        image=picture(row["image"]),
        caption=row["caption"],
    )


def make_sheet(
    task: str,
    place: tuple[str, str],
    prompts: Sequence[str],
    columns: Mapping[Column, Mapping[str, Mapping[str, Any]]],
    *,
    documents: Mapping[str, Document],
    out_of: int,
) -> Sheet:
    """One sheet.

    Args:
        task: one of `TASKS`.
        place: (set, group).
        prompts: ids, in the order shown.
        columns: by (model, memory), the rows of `generations` by prompt id, in the order shown.
        documents: all documents shown, by id.
        out_of: prompts that these were chosen from.
    """
    samples = []
    for prompt in prompts:
        rows = [by_prompt.get(prompt) for by_prompt in columns.values()]
        fed: Sequence[str] = next((row["contexts"] for row in rows if row and row["contexts"]), [])
        truth = _document(documents, prompt)
        first = next((row for row in rows if row), None)
        samples.append(
            Sample(
                prompt=first["prompt"] if first else None,
                truth=truth,
                hole=_hole(truth, first) if first else None,
                contexts=tuple(_document(documents, one) for one in fed),
                answers=tuple(generation_of(row) if row else None for row in rows),
            )
        )
    memories = {c: any(row["memory"] for row in rows.values()) for c, rows in columns.items()}
    several = sum(memories.values()) > 1
    titles = [
        f"{model_title(model)}, {memory}"
        if several and memories[model, memory]
        else model_title(model)
        for model, memory in columns
    ]
    return Sheet(
        title=slice_title(*place),
        task=task,
        columns=tuple(titles),
        samples=tuple(samples),
        out_of=out_of,
        ranking=_ranking(columns),
    )


def _hole(truth: Document, row: Mapping[str, Any]) -> str | None:
    """The truth without what was drawn anew."""
    if not row.get("box") or truth.image is None or not row["image"]:
        return None
    with Image.open(io.BytesIO(row["image"]), formats=["PNG"]) as drawn:
        size = drawn.size
    return with_hole(truth.image, row["box"], size)


def _ranking(columns: Mapping[Column, Mapping[str, Mapping[str, Any]]]) -> str:
    """How candidates were chosen, over all columns."""
    samplers = {row["sampler"] for rows in columns.values() for row in rows.values()}
    found = {
        f"best of {one['candidates']} by {one['rank']}"
        for one in map(json.loads, samplers)
        if "rank" in one
    }
    return ", ".join(sorted(found))


def _document(documents: Mapping[str, Document], document_id: str) -> Document:
    """That document, or a place for one that is not in the documents any more."""
    return documents.get(document_id) or Document(
        document_id=document_id, caption="", image=None, source="", role="", url=None, row=""
    )
