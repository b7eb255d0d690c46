"""What is asked of a generator, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipelines.ask.given import Given
from pipelines.ask.retrieving import FedContext
from pipelines.errors import UsageError
from pipelines.generation.ranking import Rank
from racm3.sampling.decode import SamplingConfig
from racm3.sampling.holes import Box

__all__ = ["HOLE", "Kind", "Question", "Settings", "told"]

Kind = Literal["image", "text"]

HOLE = "___"
"""Stands in a caption where words are to be written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a generator is asked."""

    model: str = "ra"
    """Name in the recipe, or the start of an artifact id."""
    memory: str | None = None
    """Likewise; None: the one that holds most."""
    k: int = 2
    """Contexts at most; a generator reads no more than it was trained with."""
    seed: int = 0
    temperature: float | None = None
    """None: 1 for images, .85 for texts; of images .9 of the mass is kept."""
    guidance: float | None = None
    """None: 2 for images, by a null prompt that lacks caption and contexts; 4 for edits, by one
    that lacks the document supplied; 1 (off) for texts."""
    candidates: int = 1
    """Samples drawn; the best is kept."""
    rank: Rank | None = None
    """None: CLIP (the retriever's) for images, own likelihood for texts."""

    def sampling(self, kind: Kind, *, edit: bool = False) -> SamplingConfig:
        """The sampler of one kind of output."""
        image = kind == "image"
        scale = (4.0 if edit else 2.0) if image else 1.0
        return SamplingConfig(
            temperature=(1.0 if image else 0.85) if self.temperature is None else self.temperature,
            guidance=scale if self.guidance is None else self.guidance,
            top_p=0.9 if image else 1.0,
            null_lacks="contexts" if edit else "both",
        )


@dataclass(kw_only=True, slots=True)
class Question:
    """What is asked, and what will be recorded of it."""

    task: str
    kind: Kind
    """Of what is drawn or written."""
    caption: str | None = None
    """Caption given."""
    contexts: list[FedContext] = field(default_factory=list)
    reads_memory: bool = False
    given: list[Given] = field(default_factory=list)
    box: Box | None = None
    """In pixels of the picture given."""
    canvas_box: Box | None = None
    """In pixels of the image that the generator sees."""
    notes: list[str] = field(default_factory=list)
    """What was not done as it was asked."""
    cut: int = 0
    """Tokens of the caption that were left out."""


def told(text: str, what: str) -> str:
    """What was written on the command line, as text.

    Raises:
        UsageError: when there is nothing.
    """
    clean = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if not clean.strip():
        raise UsageError(f"the {what} is empty; write the caption of an image")
    return clean
