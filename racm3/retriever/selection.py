"""Which of the ranked documents become contexts: relevance, then diversity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from racm3.encoder.base import Vectors
from racm3.retriever.memory import Memory


class SkipReason(StrEnum):
    """Why a ranked document is no context."""

    ITSELF = "itself"
    EXACT_COPY = "exact_copy"
    NEAR_COPY_OF_DOCUMENT = "near_copy_of_document"
    NEAR_COPY_OF_CONTEXT = "near_copy_of_context"
    SOURCE_LIMIT = "source_limit"
    BELOW_FLOOR = "below_floor"


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionConfig:
    """RA-CM3's selection (arXiv:2211.12561, section 3.2) and four switches of ours."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    max_contexts: int = 2
    """K: contexts at most."""
    near_copy: float | None = 0.9
    """Skip above this similarity; None turns the rule off."""
    compare: Literal["document", "image"] = "document"
    """Whose vectors the rule compares. The paper: documents. With these, two documents of one
    caption are near copies once their images' cosine exceeds about 0.74."""
    near_copy_of: Literal["any", "document", "context"] = "any"
    """Of what no context may be a near copy: of the asking document and of a chosen context (the
    paper), or of one of them. At inference the asking document is not known, so only `context`
    asks in training what it asks then."""
    max_per_source: int | None = None
    """Contexts of one source at most; None: no limit."""
    floor: float | None = None
    """Skip below this score, in [-1, 1]: no context is better than a junk one; None: no floor."""

    def __post_init__(self) -> None:
        if self.max_contexts < 0:
            raise ValueError(f"selection.max_contexts is {self.max_contexts}: it must be >= 0.")
        if self.max_per_source is not None and self.max_per_source < 1:
            raise ValueError(f"selection.max_per_source is {self.max_per_source}: give >= 1.")
        for name in ("near_copy", "floor"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise ValueError(f"selection.{name} is {value}: a cosine lies in [-1, 1].")


@dataclass(frozen=True, kw_only=True, slots=True)
class MainDocument:
    """What is known of the document that asks; at inference the prompt is all: leave it out."""

    document_id: str
    vector: NDArray[np.float32] | None = None
    """[d] document vector, unit."""
    image_vector: NDArray[np.float32] | None = None
    """[d] image vector, unit."""
    content: str | None = None
    """As `Memory.content`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A document that was chosen."""

    document_id: str
    position: int
    score: float
    """Inner product with the query."""
    rank: int
    """In the ranking that was walked, from 0; so ranks of contexts may have gaps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A ranked document that was passed over."""

    document_id: str
    reason: SkipReason
    score: float
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Contexts and what was passed over on the way to them.

    Nothing after the K-th is listed, nor anything after the first below the floor.
    """

    contexts: tuple[Hit, ...]
    skipped: tuple[Skipped, ...]


def order_hits(
    scores: NDArray[np.float32], positions: NDArray[np.int64], memory: Memory
) -> list[tuple[float, int]]:
    """(score, position) sorted by score, ties by document_id; positions below 0 are left out."""
    pairs = [(float(s), int(p)) for s, p in zip(scores, positions, strict=True) if p >= 0]
    return sorted(pairs, key=lambda pair: (-pair[0], memory.document_ids[pair[1]]))


def select_contexts(
    ranking: Iterable[tuple[float, int]],
    memory: Memory,
    config: SelectionConfig,
    main: MainDocument | None = None,
) -> Selection:
    """Walks the ranking down until K documents are chosen, or to the floor.

    Differs from the paper in one point: a document is kept from itself by its id and its exact
    copies by content, because a query of one modality never scores 0.9 against its own document.

    Args:
        ranking: (score, position), best first, as `order_hits` gives it; read as far as needed.
        memory: What the positions mean.
        config: The rules.
        main: The asking document; None at inference.

    Raises:
        ValueError: A rule needs a column that the memory or the main document lacks.
    """
    walk = _Walk(memory, config, main)
    for rank, (score, position) in enumerate(ranking):
        if len(walk.contexts) == config.max_contexts:
            break
        reason = walk.reason(score, position)
        name = memory.document_ids[position]
        if reason is None:
            walk.contexts.append(Hit(document_id=name, position=position, score=score, rank=rank))
        else:
            walk.skipped.append(Skipped(document_id=name, reason=reason, score=score, rank=rank))
        if reason is SkipReason.BELOW_FLOOR:  # and so is all that follows
            break
    return Selection(contexts=tuple(walk.contexts), skipped=tuple(walk.skipped))


def count_reasons(selections: Sequence[Selection]) -> dict[SkipReason, int]:
    """How often each rule fired, every rule listed."""
    counts = Counter(skip.reason for selection in selections for skip in selection.skipped)
    return {reason: counts[reason] for reason in SkipReason}


class _Walk:
    """What has been chosen so far, and the rules."""

    def __init__(self, memory: Memory, config: SelectionConfig, main: MainDocument | None) -> None:
        self.memory, self.config, self.main = memory, config, main
        self.contexts: list[Hit] = []
        self.skipped: list[Skipped] = []
        self.vectors = _compared(memory, config)
        self.main_vector = _main_vector(main, config)
        if config.max_per_source is not None and memory.sources is None:
            raise ValueError("selection.max_per_source needs the memory's sources: give them.")

    def reason(self, score: float, position: int) -> SkipReason | None:
        """The first rule that forbids this document."""
        if self.config.floor is not None and score < self.config.floor:
            return SkipReason.BELOW_FLOOR
        if self.main is not None and self.memory.document_ids[position] == self.main.document_id:
            return SkipReason.ITSELF
        if self._exact_copy(position):
            return SkipReason.EXACT_COPY
        return self._near_copy(position) or self._source_limit(position)

    def _exact_copy(self, position: int) -> bool:
        if self.memory.content is None:
            return False
        seen = {self.memory.content[hit.position] for hit in self.contexts}
        if self.main is not None and self.main.content is not None:
            seen.add(self.main.content)
        return self.memory.content[position] in seen

    def _near_copy(self, position: int) -> SkipReason | None:
        limit = self.config.near_copy
        if limit is None:
            return None
        vector = self.vectors[position]
        if self.main_vector is not None and float(vector @ self.main_vector) > limit:
            return SkipReason.NEAR_COPY_OF_DOCUMENT
        chosen = self.contexts if self.config.near_copy_of != "document" else ()
        if any(float(vector @ self.vectors[hit.position]) > limit for hit in chosen):
            return SkipReason.NEAR_COPY_OF_CONTEXT
        return None

    def _source_limit(self, position: int) -> SkipReason | None:
        limit, sources = self.config.max_per_source, self.memory.sources
        if limit is not None and sources is not None:
            taken = sum(sources[hit.position] == sources[position] for hit in self.contexts)
            if taken >= limit:
                return SkipReason.SOURCE_LIMIT
        return None


def _compared(memory: Memory, config: SelectionConfig) -> Vectors:
    if config.compare == "document" or config.near_copy is None:
        return memory.vectors
    if memory.image_vectors is None:
        raise ValueError("selection.compare is 'image', but the memory has no image vectors.")
    return memory.image_vectors


def _main_vector(main: MainDocument | None, config: SelectionConfig) -> NDArray[np.float32] | None:
    if main is None or config.near_copy is None or config.near_copy_of == "context":
        return None
    vector = main.vector if config.compare == "document" else main.image_vector
    if vector is None:
        raise ValueError(
            f"The near-copy rule compares {config.compare} vectors, but document "
            f"{main.document_id} has none: give it, or leave the main document out."
        )
    return vector
