"""Generates: images and captions, holes in images, edits, and drawings after demonstrations."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.errors import UsageError
from pipelines.generation.settings import Candidates, Config
from pipelines.generation.writing import Writer
from pipelines.made_with import check_together
from pipelines.models import (
    device,
    load_encoder,
    load_generator,
    load_image_tokenizer,
    load_text_tokenizer,
    pin_threads,
    weights_digest,
)
from pipelines.records import order_of, vector_matrix
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import Inputs, ShardFunction, ShardOutput, ShardPlan, ShardStage

if TYPE_CHECKING:
    from racm3.encoder.base import MultimodalEncoder

__all__ = ["Candidates", "Config", "Generate"]


class Generate(ShardStage[Config]):
    """`generations` for the prompts that evaluation examples hold.

    Its input `encoder` is read only where candidates are ranked by a CLIP that was fitted here;
    `embeddings`, of the prompts' pictures, only where captions are ranked by it.
    """

    name = "generate"
    version = 2
    kind = "generations"
    config_type = Config
    whole_inputs: ClassVar[tuple[str, ...]] = (
        "generator",
        "image_tokenizer",
        "text_tokenizer",
        "encoder",
        "embeddings",
    )
    gpu: ClassVar[bool] = True

    def environment(self, config: Config) -> str:
        """Weights given as a file are known by their digest, not by their path."""
        file = config.pretrained.pretrained if config.pretrained else None
        return weights_digest(file) if file and Path(file).is_file() else ""

    def plan(self, config: Config, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """Chooses the prompts over all shards, then cuts them into pieces.

        Raises:
            UsageError: when the inputs do not fit together, or candidates are to be ranked by an
                encoder that is not given.
        """
        _check(config, inputs, reader)
        shards = inputs["examples"].tables("examples")
        columns = ["example_id", "document_id", "set", "group"]
        rows = [
            (i, row) for i, s in enumerate(shards) for row in reader.table(s, columns).to_pylist()
        ]
        chosen = _choose(rows, config.prompts_per_group)
        plans = []
        for index, shard in enumerate(shards):
            ids = sorted(row["example_id"] for i, row in chosen if i == index)
            for start in range(0, len(ids), config.prompts_per_shard):
                piece = {"example_ids": ids[start : start + config.prompts_per_shard]}
                tags = dict(shard.tags) | {"piece": str(start)}
                plans.append(ShardPlan(inputs={"examples": (shard,)}, slice=piece, tags=tags))
        return plans

    def build(self, config: Config, whole: Inputs, reader: Reader) -> ShardFunction:
        """Loads the generator, both tokenizers and, where it ranks, the encoder once."""
        pin_threads()
        trained = whole["generator"].manifest
        writer = Writer(
            config,
            order=config.context_order or order_of(trained),
            artifact_id=trained.artifact_id,
            content=whole["generator"].content_digest,
            generator=load_generator(reader.files(whole["generator"])),
            images=load_image_tokenizer(reader.files(whole["image_tokenizer"])),
            text=load_text_tokenizer(reader.files(whole["text_tokenizer"])),
            encoder=_encoder(config, whole, reader) if config.needs_clip else None,
            seen=_seen(whole, reader) if config.needs_vectors else {},
        )

        def run(plan: ShardPlan, reader: Reader) -> ShardOutput:
            table = reader.tables(plan.inputs["examples"])
            wanted = set(plan.slice["example_ids"])
            keep = pa.array([i in wanted for i in table.column("example_id").to_pylist()])
            asked = len(wanted) * sum(config.samples(task) for task in config.tasks)
            written, dropped = writer.write(table.filter(keep))
            return ShardOutput(table=written, rows_in=asked, dropped=dropped)

        return run


def _check(config: Config, inputs: Inputs, reader: Reader) -> None:
    """Refuses inputs of different tokenizers or encoders, before anything is loaded."""
    store, generator = reader.store, inputs["generator"].manifest
    examples = inputs["examples"].manifest
    for kind in ("text_tokenizer", "image_tokenizer"):
        tokenizer = inputs[kind].manifest
        check_together(store, generator, tokenizer, kind)
        check_together(store, examples, tokenizer, kind)
    if config.memory is not None:
        check_together(store, generator, examples, "encoder")
    if config.needs_clip and ("encoder" in inputs) == (config.pretrained is not None):
        raise UsageError(
            "generate: candidates ranked by clip need the retriever's encoder: give either a "
            "fitted encoder or generate.pretrained"
        )
    if config.needs_vectors:
        if "embeddings" not in inputs:
            raise UsageError("generate: captions ranked by clip need the prompts' embeddings")
        check_together(store, examples, inputs["embeddings"].manifest, "encoder")


def _encoder(config: Config, whole: Inputs, reader: Reader) -> MultimodalEncoder:
    from racm3.encoder.clip import load_clip

    if config.pretrained is not None:
        return load_clip(config.pretrained, device=device())
    return load_encoder(reader.files(whole["encoder"]))


def _seen(whole: Inputs, reader: Reader) -> dict[str, NDArray[np.float32]]:
    """Image vectors of documents, by id."""
    shards = whole["embeddings"].tables("embeddings")
    table = reader.tables(shards, ["document_id", "image_vector"])
    vectors = vector_matrix(table.column("image_vector"))
    return dict(zip(table.column("document_id").to_pylist(), vectors, strict=True))


def _choose(
    rows: list[tuple[int, dict[str, Any]]], limit: int | None
) -> list[tuple[int, dict[str, Any]]]:
    """At most `limit` of each (set, group), the same documents whatever shards and memory are."""
    if limit is None:
        return rows
    groups: dict[tuple[Any, Any], list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for index, row in sorted(rows, key=lambda item: item[1]["document_id"]):
        groups[row["set"], row["group"]].append((index, row))
    return [item for members in groups.values() for item in members[:limit]]
