"""Which prompts are shown, and their rows as what the page shows.

Prompts are chosen by digest before anyone looks at a result, at most one a concept as long as
there are enough, so that the sheets show what a model does and not what it does best.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from pipelines.report.model import Document, Generation, Sample, Sheet
from pipelines.report.tables import model_title, slice_title
from storage_schemas.fingerprint import digest_of

__all__ = ["REST", "choose_prompts", "generation_of", "make_sheet", "picture", "slice_of"]

LARGEST_SIDE = 192
"""Pixels; larger pictures are reduced before they are put into the page."""
REST = "rest"

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
    sink = io.BytesIO()
    image.save(sink, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode("ascii")


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
        task: image or caption.
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
        samples.append(
            Sample(
                prompt=next((row["prompt"] for row in rows if row), None),
                truth=_document(documents, prompt),
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
    )


def _document(documents: Mapping[str, Document], document_id: str) -> Document:
    """That document, or a place for one that is not in the documents any more."""
    return documents.get(document_id) or Document(
        document_id=document_id, caption="", image=None, source="", role="", url=None, row=""
    )
