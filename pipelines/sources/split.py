"""Holds part of a source out: by link, so that nothing but the link decides, today or next year."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.runtime.stage import StageConfig
from storage_schemas.fingerprint import sha256_bytes

__all__ = ["Part", "Split", "place_of", "rows_within"]

Role = Literal["train", "validation", "evaluation"]
Part = tuple[Role, float, float]
"""A role and the places of its links: from (inclusive), to (exclusive), in [0, 1]."""

_DIGITS = 13  # 52 bits: exact as a float


class Split(StageConfig):
    """Shares of a train source that are held out; rows of one link are always on one side."""

    validation: float = Field(0.0, ge=0, lt=1, description="share of links for early stopping")
    evaluation: float = Field(
        0.0, ge=0, lt=1, description="share of links for scores; the set is called like the source"
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.validation + self.evaluation >= 1:
            raise ValueError("validation and evaluation together must leave something to train on")
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are not empty; together they are [0, 1)."""
        end = self.validation + self.evaluation
        parts: tuple[Part, ...] = (
            ("validation", 0.0, self.validation),
            ("evaluation", self.validation, end),
            ("train", end, 1.0),
        )
        return tuple(part for part in parts if part[1] < part[2])


def place_of(link: bytes) -> float:
    """Place of a link in [0, 1), by its SHA-256."""
    return int(sha256_bytes(link)[:_DIGITS], 16) / float(16**_DIGITS)


def rows_within(links: Sequence[bytes], low: float, high: float) -> list[int]:
    """Positions of the links whose place lies in [low, high)."""
    return [index for index, link in enumerate(links) if low <= place_of(link) < high]
