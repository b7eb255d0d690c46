"""Decodes downloaded files in a limited child and brings their pixels to one form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import pyarrow as pa
from pydantic import Field

from pipelines.decode.child import ChildLimits, Decoded, Decoder
from pipelines.decode.normalize import NormalizeOptions, Outcome
from pipelines.records import kept_rows
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import (
    Inputs,
    ShardFunction,
    ShardOutput,
    ShardPlan,
    ShardStage,
    StageConfig,
)
from storage_schemas.tables import TABLES

__all__ = ["Config", "NormalizeImages", "Outcome"]

_BATCH = 64
_COLUMNS = ["row_id", "raw_sha256", "image", "outcome"]


class Config(StageConfig):
    """Which files are accepted, and the shape of the result."""

    image_size: int | None = Field(
        256,
        ge=1,
        le=4096,
        description="pixels; short side scaled to it, square cut from the middle; none: as it is",
    )
    min_side: int = Field(16, ge=1, description="pixels; shortest side of a file that is accepted")
    max_side: int = Field(16_384, ge=1, description="pixels; longest side of a file")
    max_pixels: int = Field(50_000_000, ge=1, description="most pixels of a file")
    max_aspect: float = Field(20.0, ge=1, description="long side over short side")


class NormalizeImages(ShardStage[Config]):
    """`normalized_images`: one row for each kept row of `images`.

    A file that ends the decoder's process costs that process and its own row, nothing else.

    Args:
        limits: of the child; of this machine, never part of a fingerprint.
    """

    name = "normalize_images"
    version = 1
    kind = "normalized_images"
    config_type = Config

    def __init__(self, limits: ChildLimits | None = None) -> None:
        self.limits = limits or ChildLimits()

    def environment(self, config: Config) -> str:
        """The decoder's version: another one may round pixels otherwise."""
        return f"pillow=={version('pillow')}"

    def plan(self, config: Config, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """One unit for each shard of `images`."""
        return [
            ShardPlan(inputs={"images": (shard,)}, tags=dict(shard.tags))
            for shard in inputs["images"].tables("images")
        ]

    def build(self, config: Config, whole: Inputs, reader: Reader) -> ShardFunction:
        """The child lives as long as a shard."""
        options = NormalizeOptions(**config.model_dump())

        def run(plan: ShardPlan, reader: Reader) -> ShardOutput:
            images = kept_rows(reader.tables(plan.inputs["images"], _COLUMNS))
            with Decoder(options, self.limits) as decoder:
                rows = list(_normalized(images, decoder))
                counts = {"decoder_processes_lost": decoder.crashes} if decoder.crashes else {}
            table = pa.Table.from_pylist(rows, schema=TABLES["normalized_images"].arrow)
            return ShardOutput(table=table, rows_in=images.num_rows, counts=counts)

        return run


def _normalized(images: pa.Table, decoder: Decoder) -> Iterator[dict[str, Any]]:
    for start in range(0, images.num_rows, _BATCH):
        batch = images.slice(start, _BATCH).to_pylist()
        decoded = decoder.decode([row["image"] for row in batch])
        for row, done in zip(batch, decoded, strict=True):
            yield _row(row, done)


def _row(source: Mapping[str, Any], done: Decoded) -> dict[str, Any]:
    image = done.image
    return {
        "row_id": source["row_id"],
        "raw_sha256": source["raw_sha256"],
        "outcome": done.outcome.value,
        "error": done.error,
        "width": image.width if image else None,
        "height": image.height if image else None,
        "mode": image.mode if image else None,
        "frames": image.frames if image else None,
        "pixel_sha256": image.pixel_sha256 if image else None,
        "perceptual_hash": image.perceptual_hash if image else None,
        "image": image.png if image else None,
    }
