"""Images to VQ codes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines.models import load_image_tokenizer, pin_threads
from pipelines.records import documents_of, image_stack
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

__all__ = ["Config", "TokenizeImages"]


class Config(StageConfig):
    """Batches are part of the result: sums depend on them by rounding."""

    batch_size: int = Field(64, ge=1, description="images in one forward pass")


class TokenizeImages(ShardStage[Config]):
    """`image_tokens`: the codes of every kept document's image, resized to the tokenizer's size."""

    name = "tokenize_images"
    version = 1
    kind = "image_tokens"
    config_type = Config
    whole_inputs: ClassVar[tuple[str, ...]] = ("image_tokenizer",)
    gpu: ClassVar[bool] = True

    def plan(self, config: Config, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """One shard of documents each."""
        return [
            ShardPlan(inputs={"documents": (shard,)}, tags=dict(shard.tags))
            for shard in inputs["documents"].tables("documents")
        ]

    def build(self, config: Config, whole: Inputs, reader: Reader) -> ShardFunction:
        """Loads the tokenizer once."""
        from racm3.training.image_tokenizer import images_to_tensor

        pin_threads()
        tokenizer = load_image_tokenizer(reader.files(whole["image_tokenizer"]))
        height, width = tokenizer.grid

        def run(plan: ShardPlan, reader: Reader) -> ShardOutput:
            table = documents_of(reader, plan.inputs["documents"], ["document_id", "image"])
            pngs, codes = table.column("image").to_pylist(), []
            for start in range(0, len(pngs), config.batch_size):
                images = image_stack(pngs[start : start + config.batch_size], tokenizer.image_size)
                codes += tokenizer.encode(images_to_tensor(images)).tolist()
            count = table.num_rows
            tokens = pa.table(
                {
                    "document_id": table.column("document_id"),
                    "codes": pa.array(codes, pa.list_(pa.int32())),
                    "grid_height": np.full(count, height, np.int32),
                    "grid_width": np.full(count, width, np.int32),
                },
                schema=TABLES["image_tokens"].arrow,
            )
            return ShardOutput(table=tokens, rows_in=count)

        return run
