"""Embeds both sides of each document, and draws of its queries with words or patches dropped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipelines.errors import UsageError
from pipelines.models import device, load_encoder, pin_threads, weights_digest
from pipelines.records import documents_of, image_array, vector_lists, vectors_column
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import (
    Inputs,
    ShardFunction,
    ShardOutput,
    ShardPlan,
    ShardStage,
    StageConfig,
)
from racm3.encoder.clip import ClipSpec

if TYPE_CHECKING:
    from racm3.encoder.base import MultimodalEncoder

__all__ = ["Config", "EmbedDocuments"]

_IMAGE_DRAWS = 1
"""Tells a document's image draws from its text draws."""


class Config(StageConfig):
    """Which encoder, and how queries are drawn."""

    pretrained: ClipSpec | None = Field(
        None, description="a public CLIP: open_clip model and tag or weights file; none: `encoder`"
    )
    draws: int = Field(4, ge=0, description="draws of each query with dropout; 0: no dropout")
    drop: float = Field(
        0.2, ge=0, lt=1, description="probability that a word of a query is dropped"
    )
    drop_patches: float = Field(
        0.0, ge=0, lt=1, description="the same for a patch of an image; 0: images are not drawn"
    )
    patch: int = Field(16, ge=1, description="edge of a patch, in pixels of the normalised image")
    seed: int = Field(0, ge=0, description="of the draws")


class EmbedDocuments(ShardStage[Config]):
    """`embeddings`: unit vectors of every kept document.

    One shard's captions, images and draws go through the encoder in the same batches wherever it
    runs. A document's draws depend on the seed and its id alone.
    """

    name = "embed_documents"
    version = 1
    kind = "embeddings"
    config_type = Config
    whole_inputs: ClassVar[tuple[str, ...]] = ("encoder",)
    gpu: ClassVar[bool] = True

    def environment(self, config: Config) -> str:
        """Weights given as a file are known by their digest, not by their path."""
        file = config.pretrained.pretrained if config.pretrained else None
        return weights_digest(file) if file and Path(file).is_file() else ""

    def plan(self, config: Config, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """One shard of documents each.

        Raises:
            UsageError: when there is no encoder, or there are two.
        """
        if ("encoder" in inputs) == (config.pretrained is not None):
            raise UsageError(
                "embed_documents: give either a fitted encoder or embed.pretrained, not both"
            )
        return [
            ShardPlan(inputs={"documents": (shard,)}, tags=dict(shard.tags))
            for shard in inputs["documents"].tables("documents")
        ]

    def build(self, config: Config, whole: Inputs, reader: Reader) -> ShardFunction:
        """Loads the encoder once."""
        pin_threads()
        encoder = _encoder(config, whole, reader)

        def run(plan: ShardPlan, reader: Reader) -> ShardOutput:
            columns = ["document_id", "caption", "image"]
            table = documents_of(reader, plan.inputs["documents"], columns)
            ids, captions = (table.column(name).to_pylist() for name in columns[:2])
            images = [image_array(png) for png in table.column("image").to_pylist()]
            embedded = pa.table(
                {
                    "document_id": pa.array(ids, pa.string()),
                    "text_vector": vectors_column(encoder.encode_text(captions)),
                    "image_vector": vectors_column(encoder.encode_images(images)),
                    "query_vectors": vector_lists(_text_draws(encoder, ids, captions, config)),
                    "image_query_vectors": vector_lists(_image_draws(encoder, ids, images, config)),
                }
            )
            return ShardOutput(table=embedded, rows_in=len(ids))

        return run


def _encoder(config: Config, whole: Inputs, reader: Reader) -> MultimodalEncoder:
    from racm3.encoder.clip import load_clip

    if config.pretrained is not None:
        return load_clip(config.pretrained, device=device())
    return load_encoder(reader.files(whole["encoder"]))


def _text_draws(
    encoder: MultimodalEncoder, ids: Sequence[str], captions: Sequence[str], config: Config
) -> NDArray[np.float32]:
    """[N, R, d] unit vectors of R draws of each caption."""
    from racm3.retriever.query import document_generator, dropped_queries

    texts = [
        text
        for name, caption in zip(ids, captions, strict=True)
        for text in dropped_queries(
            caption,
            draws=config.draws,
            rng=document_generator(config.seed, name),
            rate=config.drop,
        )
    ]
    return encoder.encode_text(texts).reshape(len(ids), config.draws, encoder.dim)


def _image_draws(
    encoder: MultimodalEncoder,
    ids: Sequence[str],
    images: Sequence[NDArray[np.uint8]],
    config: Config,
) -> NDArray[np.float32]:
    """[N, R, d] unit vectors of R draws of each image; R is 0 where images lose nothing."""
    from racm3.retriever.query import document_generator, dropped_image_queries

    count = config.draws if config.drop_patches else 0
    drawn = [
        dropped_image_queries(
            image,
            draws=count,
            rng=document_generator(config.seed, name, _IMAGE_DRAWS),
            patch=config.patch,
            rate=config.drop_patches,
        )
        for name, image in zip(ids, images, strict=True)
    ]
    found = np.empty((len(ids), count, encoder.dim), np.float32)
    for draw in range(count):  # one draw of all at a time: R copies of the shard may not fit
        found[:, draw] = encoder.encode_images([next(one) for one in drawn])
    return found
