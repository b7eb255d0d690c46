"""Joins documents, codes and contexts to the rows that the trainer reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipelines.errors import PipelineError
from pipelines.models import load_text_tokenizer
from pipelines.records import documents_of, rows_of, same_tags
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import (
    Inputs,
    ShardFunction,
    ShardOutput,
    ShardPlan,
    ShardStage,
    StageConfig,
)
from racm3.document import ContextModality, DocumentTokens
from racm3.text_tokenizer import TextTokenizer
from storage_schemas.ids import example_id
from storage_schemas.manifest import Shard
from storage_schemas.tables import TABLES

__all__ = ["AssembleExamples", "Config"]

_PLACE = ("document_id", "source", "role", "set", "group", "concept", "caption")


class Config(StageConfig):
    """Which memory the contexts are of, and how long captions are."""

    memory: str = Field("restricted", description="name of the memory in the recipe")
    max_text_tokens: int = Field(32, ge=1, description="captions are cut to so many tokens")
    context_modality: ContextModality = Field(
        "both", description="what a context shows of its document: both, text (caption) or image"
    )


class AssembleExamples(ShardStage[Config]):
    """`examples`: a document's tokens, and those of every candidate context once.

    Whoever reads examples sees contexts as `context_modality` has them; their ids stay.
    Rows are sorted by example id, a digest: reading them in order is reading them shuffled.
    """

    name = "assemble_examples"
    version = 1
    kind = "examples"
    config_type = Config
    whole_inputs: ClassVar[tuple[str, ...]] = (
        "memory_documents",
        "memory_tokens",
        "text_tokenizer",
    )

    def plan(self, config: Config, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """One shard of contexts each, with the documents and codes of the same source rows.

        Raises:
            PipelineError: when a shard lacks its documents or codes.
        """
        plans = []
        for shard in inputs["contexts"].tables("contexts"):
            parts = {name: same_tags(inputs[name], shard) for name in ("documents", "image_tokens")}
            for name, found in parts.items():
                if len(found) != 1:
                    raise PipelineError(
                        f"assemble_examples: {len(found)} shards of {name} go with the contexts of "
                        f"{dict(shard.tags)}; select the same sources for both"
                    )
            plans.append(ShardPlan(inputs=parts | {"contexts": (shard,)}, tags=dict(shard.tags)))
        return plans

    def build(self, config: Config, whole: Inputs, reader: Reader) -> ShardFunction:
        """Reads the memory's captions and codes once; only what is retrieved becomes tokens."""
        tokenizer = load_text_tokenizer(reader.files(whole["text_tokenizer"]))
        limit = config.max_text_tokens
        captions = documents_of(reader, whole["memory_documents"].tables("documents"))
        codes = _code_table(reader, whole["memory_tokens"].tables("image_tokens"))

        def run(plan: ShardPlan, reader: Reader) -> ShardOutput:
            documents = documents_of(reader, plan.inputs["documents"], _PLACE)
            own = _tokens(documents, _code_table(reader, plan.inputs["image_tokens"]), tokenizer)
            contexts = reader.tables(plan.inputs["contexts"])
            asked = _asked(contexts)
            chosen = pc.unique(pc.list_flatten(contexts.column("context_ids")))
            memory = {
                name: tokens.showing(config.context_modality)
                for name, tokens in _tokens(
                    rows_of(captions, chosen), rows_of(codes, chosen), tokenizer
                ).items()
            }
            rows = [
                _row(place, own[place["document_id"]], asked[place["document_id"]], memory, config)
                for place in documents.select(list(_PLACE)).to_pylist()
            ]
            table = pa.Table.from_pylist(rows, schema=TABLES["examples"].arrow)
            cut = Counter(
                {
                    "captions_cut": sum(len(one.text) > limit for one in own.values()),
                    "text_tokens_cut": sum(max(0, len(one.text) - limit) for one in own.values()),
                }
            )
            return ShardOutput(table=table, rows_in=len(rows), counts=dict(cut))

        return run


def _code_table(reader: Reader, shards: Sequence[Shard]) -> pa.Table:
    columns = ["document_id", "codes"]
    parts = [reader.table(shard, columns) for shard in shards]
    return pa.concat_tables(parts) if parts else TABLES["image_tokens"].empty().select(columns)


def _lists(table: pa.Table, columns: Sequence[str]) -> list[list[Any]]:
    return [table.column(name).to_pylist() for name in columns]


def _tokens(
    documents: pa.Table, codes_of: pa.Table, tokenizer: TextTokenizer
) -> dict[str, DocumentTokens]:
    """Tokens of documents by id, captions uncut."""
    names, captions = _lists(documents, ["document_id", "caption"])
    codes = dict(zip(*_lists(codes_of, ["document_id", "codes"]), strict=True))
    return {
        name: DocumentTokens(text=tuple(tokenizer.encode(caption)), image=tuple(codes[name]))
        for name, caption in zip(names, captions, strict=True)
    }


def _asked(contexts: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Queries by document, text before image, by draw."""
    columns = ["document_id", "query", "draw", "context_ids"]
    asked: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in contexts.select(columns).to_pylist():
        asked[row["document_id"]].append(row)
    for queries in asked.values():
        queries.sort(key=lambda row: (row["query"] != "text", row["draw"]))
    return dict(asked)


def _row(
    place: Mapping[str, Any],
    own: DocumentTokens,
    asked: Sequence[Mapping[str, Any]],
    memory: Mapping[str, DocumentTokens],
    config: Config,
) -> dict[str, Any]:
    candidates = list(dict.fromkeys(name for row in asked for name in row["context_ids"]))
    where = {name: index for index, name in enumerate(candidates)}
    limit = config.max_text_tokens
    return {name: place[name] for name in _PLACE if name != "caption"} | {
        "example_id": example_id(place["document_id"], config.memory),
        "text_tokens": list(own.text[:limit]),
        "image_tokens": list(own.image),
        "queries": [row["query"] for row in asked],
        "draws": [row["draw"] for row in asked],
        "hits": [[where[name] for name in row["context_ids"]] for row in asked],
        "candidate_ids": candidates,
        "candidate_text": [list(memory[name].text[:limit]) for name in candidates],
        "candidate_image": [list(memory[name].image) for name in candidates],
    }
