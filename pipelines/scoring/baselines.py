"""What one gets without a generator: the top document as it is, and the tokenizer's floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.records import image_array
from pipelines.scoring.board import Place, slices_of
from pipelines.scoring.samples import Answers, Truth
from racm3.metrics.copy_rows import copy_top
from racm3.training.examples import Example

if TYPE_CHECKING:
    from racm3.image_tokenizer.base import ImageTokenizer

__all__ = ["copies", "floor"]

COPY = "copy the top document"
FLOOR = "image tokenizer"
_BATCH = 64
"""Images decoded at a time."""


def copies(
    memory: str,
    examples: Sequence[Example],
    places: Sequence[Place],
    documents: Mapping[str, Mapping[str, Any]],
) -> list[Answers]:
    """What one gets by handing over the top document: its image, its caption.

    Args:
        memory: That was asked.
        examples: That asked it; those that got nothing are left out.
        places: Of the examples.
        documents: By id: `image` (PNG) and `caption`.
    """
    found = []
    for side, column in (("text", "image"), ("image", "caption")):
        ranked = [_top(example, side) for example in examples]
        index, answers = copy_top(ranked, {i: row[column] for i, row in documents.items()})
        kept = tuple(places[i] for i in index)
        if not kept:
            continue
        part = Answers(model=COPY, k=1, memory=memory, places=kept, slices=tuple(slices_of(kept)))
        if side == "text":
            pixels = np.stack([image_array(png) for png in answers])
            part = replace(part, images=pixels, codes=_top_codes(examples, index))
        else:
            part = replace(part, captions=tuple(answers))
        found.append(part)
    return found


def floor(places: Sequence[Place], truth: Truth, tokenizer: ImageTokenizer) -> Answers:
    """The originals through the image tokenizer and back: no generator does better."""
    import torch

    from racm3.training.image_tokenizer import tensor_to_images

    codes = torch.tensor(np.stack([truth.codes[place.document_id] for place in places]))
    with torch.no_grad():
        parts = [tensor_to_images(tokenizer.decode(c)) for c in torch.split(codes, _BATCH)]
    return Answers(
        model=FLOOR,
        k=0,
        memory="",
        places=tuple(places),
        slices=tuple(slices_of(places)),
        images=np.concatenate(parts),
    )


def _top(example: Example, side: str) -> Sequence[str]:
    asked = [query for query in example.queries if query.query == side]
    return min(asked, key=lambda query: query.draw).document_ids[:1] if asked else ()


def _top_codes(examples: Sequence[Example], index: Sequence[int]) -> NDArray[np.int64] | None:
    """[n, 1, h*w]; None where contexts show no image."""
    codes = []
    for i in index:
        asked = [query for query in examples[i].queries if query.query == "text"]
        codes.append(min(asked, key=lambda query: query.draw).contexts[0].image)
    return np.array(codes)[:, None] if all(codes) else None
