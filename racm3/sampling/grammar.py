"""Which ids may come next: a small pure state machine.

A continuation is either a run of image codes of known length (an image, or holes in one: their
size is geometry, so nothing has to announce their end) or a text, which ends with ``<eoss>``. Some
of the ids to come may be known: codes that are given, or what stands between two spans.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from racm3.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Grammar:
    """What is still to be written."""

    kind: Literal["image", "text"]
    """Image codes, or text tokens closed by ``<eoss>``."""
    room: int
    """Ids still to come, exactly, for images; text tokens that may still come, at most."""
    started: bool = False
    """Whether something was written: a masked caption is never empty."""
    closed: bool = False
    """Whether ``<eoss>`` was written."""
    script: tuple[int | None, ...] = ()
    """Of the ids to come, those that are known; `None`, and all beyond its end: to be drawn."""

    @property
    def done(self) -> bool:
        """Nothing may follow."""
        return self.closed or (self.kind == "image" and not self.room)

    @property
    def known(self) -> tuple[int, ...]:
        """The ids that must come next, up to the first that is to be drawn."""
        drawn = next((i for i, one in enumerate(self.script) if one is None), len(self.script))
        return self.script[:drawn]  # type: ignore[return-value]  # it ends before a None

    def choices(self, vocabulary: Vocabulary) -> tuple[range, ...]:
        """Ids that may come next, as ranges; none where it is done."""
        if self.done:
            return ()
        if self.script and self.script[0] is not None:
            return (range(self.script[0], self.script[0] + 1),)
        ranges = []
        if self.room:
            ranges += [vocabulary.image_range if self.kind == "image" else vocabulary.text_range]
        if self.kind == "text" and (self.started or not self.room):
            ranges += [range(vocabulary.eoss_id, vocabulary.eoss_id + 1)]
        return tuple(ranges)

    def allowed(self, vocabulary: Vocabulary) -> Tensor:
        """Ids that may come next, bool [V]; none where it is done."""
        mask = torch.zeros(vocabulary.size, dtype=torch.bool)
        for ids in self.choices(vocabulary):
            mask[ids.start : ids.stop] = True
        return mask

    def advance(self, token_id: int, vocabulary: Vocabulary) -> Grammar:
        """The state after an id.

        Raises:
            ValueError: The id is not allowed here.
        """
        if not any(token_id in ids for ids in self.choices(vocabulary)):
            raise ValueError(f"Id {token_id} may not come next in {self}.")
        if self.kind == "text" and token_id == vocabulary.eoss_id:
            return replace(self, closed=True)
        return replace(self, room=self.room - 1, started=True, script=self.script[1:])
