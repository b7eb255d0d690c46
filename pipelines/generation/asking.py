"""What each task asks a generator, of an evaluation example.

| task | caption given | image given | contexts, in the order fed |
|---|---|---|---|
| image | the document's | none | what the caption retrieves |
| caption | none | the document's | what the image retrieves |
| infill | the document's | all but a box | what the caption retrieves |
| edit | the supplied document's | all but a box | the supplied document |
| demonstrate | the document's | none | what the image retrieves |

The document supplied to an edit is the last one that the image (else the caption) retrieves and
that has another caption: it looks alike and is called otherwise (the first is often another drawing
of the same thing). Demonstrations are what a person would pick who has seen the picture. Both know
more than a prompt does, so that nothing is measured on them: they are to be looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from racm3.document import DocumentTokens
from racm3.sampling.holes import Box, BoxRule, box_by_rule
from racm3.training.examples import Example, QueryContexts
from storage_schemas.fingerprint import digest_of

__all__ = ["NO_OTHER_DOCUMENT", "Asked", "Canvas", "Task", "ask"]

Task = Literal["image", "caption", "infill", "edit", "demonstrate"]

NO_OTHER_DOCUMENT = "no_other_document"
"""Why an example has no edit: nothing that it retrieved has another caption."""

_ASKED_BY: dict[Task, Literal["text", "image"]] = {
    "image": "text",
    "caption": "image",
    "infill": "text",
    "demonstrate": "image",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """Geometry of the images, and where holes are."""

    size: tuple[int, int]
    """Height and width, pixels."""
    grid: tuple[int, int]
    """h and w, codes."""
    infill: BoxRule = "lower_half"
    edit: BoxRule = "centre"
    seed: int = 0
    """Of boxes whose place is drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One question."""

    contexts: tuple[DocumentTokens, ...]
    """Best first, or in the order picked."""
    context_ids: tuple[str, ...]
    text: tuple[int, ...] | None
    """Tokens of the caption given."""
    image: tuple[int, ...] | None
    """Codes of the image given."""
    box: Box | None = None
    """Pixels that are drawn anew."""
    hole: tuple[int, ...] = ()
    """Their codes."""

    def in_order(self, ranks: Sequence[int]) -> Asked:
        """The same with its contexts in the order of these ranks."""
        return replace(
            self,
            contexts=tuple(self.contexts[rank] for rank in ranks),
            context_ids=tuple(self.context_ids[rank] for rank in ranks),
        )


def ask(example: Example, task: Task, k: int, canvas: Canvas) -> Asked | None:
    """The question of a task; None: the example has no other document for an edit.

    Args:
        example: Of an evaluation document.
        task: Which question.
        k: Contexts at most; 0 asks the same without any.
        canvas: Of the images.
    """
    main = example.main
    if task == "edit":
        return _edit(example, k, canvas)
    found = _retrieved(example, _ASKED_BY[task])
    box, hole = _hole(canvas.infill, example, canvas) if task == "infill" else (None, ())
    return Asked(
        contexts=found.contexts[:k] if found else (),
        context_ids=found.document_ids[:k] if found else (),
        text=None if task == "caption" else main.text,
        image=main.image if task in ("caption", "infill") else None,
        box=box,
        hole=hole,
    )


def _edit(example: Example, k: int, canvas: Canvas) -> Asked | None:
    for side in ("image", "text"):
        found = _retrieved(example, side)
        for name, document in reversed(list(zip(*_parts(found), strict=True))):
            if document.text and document.text != example.main.text:
                box, hole = _hole(canvas.edit, example, canvas)
                return Asked(
                    contexts=(document,)[:k],
                    context_ids=(name,)[:k],
                    text=document.text,
                    image=example.main.image,
                    box=box,
                    hole=hole,
                )
    return None


def _parts(found: QueryContexts | None) -> tuple[Sequence[str], Sequence[DocumentTokens]]:
    return (found.document_ids, found.contexts) if found else ((), ())


def _retrieved(example: Example, side: str) -> QueryContexts | None:
    """What the prompt alone retrieves: with the whole caption, or the image."""
    asked = [query for query in example.queries if query.query == side]
    return min(asked, key=lambda query: query.draw) if asked else None


def _hole(rule: BoxRule, example: Example, canvas: Canvas) -> tuple[Box, tuple[int, ...]]:
    """A box by rule; where it is drawn, its place depends on seed and document alone."""
    key = int(digest_of(["box", canvas.seed, example.document_id])[:15], 16)
    box = box_by_rule(rule, size=canvas.size, generator=np.random.default_rng(key))
    return box, box.codes(size=canvas.size, grid=canvas.grid)
