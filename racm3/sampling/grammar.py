"""Which ids may come next: a small pure state machine.

A continuation is either a run of image codes of known length (an image, or a hole in one: its size
is geometry, so nothing has to announce its end) or a caption, which ends with ``<eoss>``.
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
    """Image codes still to come, exactly; text tokens that may still come, at most."""
    started: bool = False
    """Whether something was written: a masked caption is never empty."""
    closed: bool = False
    """Whether ``<eoss>`` was written."""

    @property
    def done(self) -> bool:
        """Nothing may follow."""
        return self.closed or (self.kind == "image" and not self.room)

    def allowed(self, vocabulary: Vocabulary) -> Tensor:
        """Ids that may come next, bool [V]; none where it is done."""
        mask = torch.zeros(vocabulary.size, dtype=torch.bool)
        if self.done:
            return mask
        if self.room:
            ids = vocabulary.image_range if self.kind == "image" else vocabulary.text_range
            mask[ids.start : ids.stop] = True
        if self.kind == "text" and (self.started or not self.room):
            mask[vocabulary.eoss_id] = True
        return mask

    def advance(self, token_id: int, vocabulary: Vocabulary) -> Grammar:
        """The state after an id.

        Raises:
            ValueError: The id is not allowed here.
        """
        ids = vocabulary.image_range if self.kind == "image" else vocabulary.text_range
        if not self.done and self.room and token_id in ids:
            return replace(self, room=self.room - 1, started=True)
        ends = self.kind == "text" and (self.started or not self.room)
        if not self.done and ends and token_id == vocabulary.eoss_id:
            return replace(self, closed=True)
        raise ValueError(f"Id {token_id} may not come next in {self}.")
