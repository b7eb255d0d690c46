"""Rows <-> domain objects, both ways: the only place where a table meets what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from pipelines.runtime.reader import Reader, Selection
from racm3.document import ContextModality, DocumentTokens
from racm3.sequence.order import ContextOrder, asked_order
from racm3.training.examples import Example, QueryContexts
from racm3.training.records import LogRow
from storage_schemas.manifest import Manifest, Shard
from storage_schemas.tables import TABLES

if TYPE_CHECKING:
    from racm3.retriever.memory import Memory

__all__ = [
    "DOCUMENT_VECTORS",
    "IMAGE_VECTORS",
    "INDEX",
    "KEPT",
    "MEMORY_ROLES",
    "context_pool",
    "documents_of",
    "examples_of",
    "image_array",
    "image_png",
    "image_stack",
    "kept_rows",
    "log_table",
    "memory_of",
    "modality_of",
    "order_of",
    "rows_of",
    "same_tags",
    "samples_of",
    "vector_lists",
    "vector_matrix",
    "vectors_column",
]

KEPT = "kept"
"""The outcome that sends a row on."""
MEMORY_ROLES = ("train", "memory")
"""Roles of documents that a memory may hold."""
INDEX = "index.faiss"
DOCUMENT_VECTORS = "document_vectors.npy"
IMAGE_VECTORS = "image_vectors.npy"
"""Files of a `memory` artifact."""

_PNG_LEVEL = 6


# --- images -----------------------------------------------------------------------------------


def image_png(pixels: NDArray[np.uint8]) -> bytes:
    """RGB pixels (H, W, 3), 0..255, as a PNG file; equal pixels give equal bytes."""
    sink = BytesIO()
    Image.fromarray(pixels, mode="RGB").save(sink, "PNG", compress_level=_PNG_LEVEL)
    return sink.getvalue()


def image_array(png: bytes) -> NDArray[np.uint8]:
    """A PNG file of this pipeline as RGB pixels (H, W, 3), 0..255.

    Raises:
        PIL.UnidentifiedImageError: when the bytes are no PNG; no other format is tried.
    """
    with Image.open(BytesIO(png), formats=["PNG"]) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def image_stack(pngs: Sequence[bytes], size: int) -> NDArray[np.uint8]:
    """PNG files as [N, size, size, 3], 0..255; other sizes are resized (bicubic, no cropping)."""
    stack = np.empty((len(pngs), size, size, 3), dtype=np.uint8)
    for row, png in enumerate(pngs):
        pixels = image_array(png)
        if pixels.shape[:2] != (size, size):
            picture = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
            pixels = np.asarray(picture, dtype=np.uint8)
        stack[row] = pixels
    return stack


# --- rows -------------------------------------------------------------------------------------


def kept_rows(table: pa.Table) -> pa.Table:
    """The rows that go on."""
    return table.filter(pc.equal(table.column("outcome"), KEPT))


def documents_of(
    reader: Reader, shards: Sequence[Shard], columns: Sequence[str] = ("document_id", "caption")
) -> pa.Table:
    """Kept documents of some shards, sorted by document id: independent of the shards' order.

    Args:
        reader: of the store.
        shards: of the table `documents`; none gives no rows.
        columns: to return; `document_id` must be among them.
    """
    wanted = [*columns, "outcome"]
    parts = [kept_rows(reader.table(shard, wanted)).select(list(columns)) for shard in shards]
    if not parts:
        return TABLES["documents"].empty().select(list(columns))
    return pa.concat_tables(parts).sort_by("document_id").combine_chunks()


def rows_of(table: pa.Table, ids: pa.Array | Sequence[str]) -> pa.Table:
    """The rows of some documents, found without walking the table in Python."""
    wanted = ids if isinstance(ids, pa.Array) else pa.array(list(ids), pa.string())
    return table.filter(pc.is_in(table.column("document_id"), value_set=wanted))


def same_tags(selection: Selection, shard: Shard) -> tuple[Shard, ...]:
    """The shards of `selection` that were made of the same source rows as `shard`."""
    return tuple(other for other in selection.tables() if other.tags == shard.tags)


def samples_of(table: pa.Table, task: str) -> dict[str, list[dict[str, Any]]]:
    """Generations of one task by the document they were asked with, the least seed first.

    Shards sort by id, which depends on the model; seeds do not, so that the first sample of every
    model is drawn from the same noise. Free prompts are left out.

    Args:
        table: `generations`.
        task: `image` or `caption`.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["seed"]):
        if row["task"] == task and row["prompt_id"]:
            found.setdefault(row["prompt_id"], []).append(row)
    return found


# --- vectors ----------------------------------------------------------------------------------


def vector_matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of N vectors of one length d as [N, d]; [0, 0] when it is empty.

    Raises:
        ValueError: when the vectors differ in length.
    """
    lengths = set(pc.list_value_length(column).to_pylist())
    if len(lengths) > 1:
        raise ValueError(f"vectors of lengths {sorted(lengths)} in one column; embed them again")
    flat = np.asarray(pc.list_flatten(column).to_numpy(), dtype=np.float32)
    return flat.reshape(len(column), lengths.pop() if lengths else 0)


def vectors_column(matrix: NDArray[np.float32]) -> pa.Array:
    """[N, d] as a column of N vectors."""
    count, width = matrix.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    values = pa.array(np.ascontiguousarray(matrix, dtype=np.float32).ravel(), pa.float32())
    return pa.ListArray.from_arrays(offsets, values)


def vector_lists(blocks: NDArray[np.float32]) -> pa.Array:
    """[N, R, d] as a column of N lists of R vectors each."""
    count, draws, width = blocks.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * draws)
    return pa.ListArray.from_arrays(offsets, vectors_column(blocks.reshape(count * draws, width)))


def memory_of(table: pa.Table, files: Mapping[str, Path]) -> Memory:
    """A published memory: its table gives ids and sources, its files the vectors (mapped).

    Raises:
        ValueError: when table and vectors disagree in number, or a document comes twice.
    """
    from racm3.retriever.memory import Memory

    table = table.sort_by("position")
    ids = table.column("document_id")
    if pc.count_distinct(ids).as_py() != len(ids):
        raise ValueError("the memory holds a document twice; build it again")
    return Memory(
        document_ids=_Strings(ids),
        vectors=np.load(files[DOCUMENT_VECTORS], mmap_mode="r", allow_pickle=False),
        image_vectors=np.load(files[IMAGE_VECTORS], mmap_mode="r", allow_pickle=False),
        sources=_Strings(table.column("source")),
    )


class _Strings(Sequence[str]):
    """A column of strings, read where it is asked: a memory's is too long for Python objects."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._values = column

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return tuple(self._values[index].to_pylist())
        return str(self._values[index].as_py())


# --- training ---------------------------------------------------------------------------------


def log_table(log: Sequence[LogRow]) -> pa.Table:
    """A training log as `training_log`: one row a step, split and metric."""
    rows = []
    for row in log:
        metrics = dict(row.metrics)
        if row.split == "train":
            metrics |= {"learning_rate": row.learning_rate, "grad_norm": row.grad_norm}
        rows += [
            {
                "step": row.step,
                "split": row.split,
                "metric": name,
                "value": float(value),
                "tokens": int(row.tokens),
                "flops": float(row.flops),
                "seconds": float(row.seconds),
            }
            for name, value in metrics.items()
        ]
    return pa.Table.from_pylist(rows, schema=TABLES["training_log"].arrow)


def order_of(generator: Manifest) -> ContextOrder:
    """The order of contexts that a generator is asked in: that of its training, else best first."""
    return asked_order(generator.config["stream"].get("context_order", "shuffled"))


def modality_of(examples: Manifest) -> ContextModality:
    """What the contexts of an artifact of examples show."""
    return cast(ContextModality, examples.config.get("context_modality", "both"))


def context_pool(examples: Selection, rows: Sequence[Example]) -> list[DocumentTokens]:
    """Main documents as contexts: they show what the contexts of these examples show."""
    return [example.main.showing(modality_of(examples.manifest)) for example in rows]


def examples_of(table: pa.Table) -> list[Example]:
    """Rows of `examples` as what the trainer reads, in the order of the rows."""
    return [_example(row) for row in table.to_pylist()]


def _example(row: Mapping[str, Any]) -> Example:
    candidates = [
        DocumentTokens(text=tuple(text), image=tuple(image))
        for text, image in zip(row["candidate_text"], row["candidate_image"], strict=True)
    ]
    queries = [
        QueryContexts(
            query=cast(Literal["text", "image"], query),
            draw=draw,
            document_ids=tuple(row["candidate_ids"][hit] for hit in hits),
            contexts=tuple(candidates[hit] for hit in hits),
        )
        for query, draw, hits in zip(row["queries"], row["draws"], row["hits"], strict=True)
    ]
    return Example(
        example_id=row["example_id"],
        document_id=row["document_id"],
        main=DocumentTokens(text=tuple(row["text_tokens"]), image=tuple(row["image_tokens"])),
        queries=tuple(queries),
        group=row["group"],
        category=row["category"],
        concept=row["concept"],
        source=row["source"],
    )
