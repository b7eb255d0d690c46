"""Reads tables of image links in any column layout; decides which rows are worth a download."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipelines.errors import FoundWrong, UsageError
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import (
    Inputs,
    ShardFunction,
    ShardOutput,
    ShardPlan,
    ShardStage,
    StageConfig,
)
from pipelines.sources.layouts import Layout, resolve_layout
from pipelines.sources.split import Split, rows_within
from storage_schemas.errors import SchemaError
from storage_schemas.fingerprint import sha256_bytes
from storage_schemas.ids import row_id
from storage_schemas.manifest import Shard
from storage_schemas.parquet import read_external
from storage_schemas.tables import TABLES

__all__ = ["Config", "IngestMetadata", "Outcome"]

Outcome = Literal[
    "kept",
    "url_missing",
    "caption_missing",
    "caption_not_utf8",
    "caption_too_long",
    "watermark",
    "unsafe",
    "too_small",
    "duplicate_row",
]
"""Tested in this order; the first that holds is the row's outcome."""

_TEXTS = ("url", "caption", "license_claimed", "hash", "group", "concept", "category")
_SCORES = ("similarity", "punsafe", "pwatermark")
_SIZES = ("width", "height")
_UNKNOWN = {"pwatermark": "watermark_unknown", "punsafe": "unsafe_unknown", "width": "size_unknown"}
_LARGEST_SIZE = 2**31 - 1


class Config(StageConfig):
    """Which rows are kept. A row whose score or size is unknown is kept, and counted."""

    columns: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="by source name: our column -> theirs, where detection would not find it",
    )
    split: dict[str, Split] = Field(
        default_factory=dict, description="by name of a train source: shares that are held out"
    )
    max_watermark: float | None = Field(0.5, description="probability above which a row is dropped")
    max_unsafe: float | None = Field(0.5, description="probability above which a row is dropped")
    min_size: int = Field(256, description="pixels; smallest known width and height")
    max_caption_chars: int = Field(10_000, description="longest caption, characters")
    rows_per_shard: int = Field(10_000, ge=1, description="rows of a file in one shard")


class IngestMetadata(ShardStage[Config]):
    """`source_rows`: every row of every source file, with the decision whether to download it.

    A shard is a range of rows of one file; of a source that is split, the rows of one role in it.
    An empty file gives one empty shard. Rows that repeat link and caption within a shard are
    `duplicate_row`; what repeats elsewhere, curation finds.
    """

    name = "ingest_metadata"
    version = 2
    kind = "source_rows"
    config_type = Config

    def plan(self, config: Config, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """Cuts each file into ranges of rows; only footers are read.

        Raises:
            UsageError: when a file is gone, or has no column of links or of captions.
            SchemaError: when it is no Parquet file.
        """
        plans = []
        for shard in inputs["sources"].shards:
            count = _count_rows(shard, config)
            split = config.split.get(shard.tags["source"])
            for start in range(0, max(count, 1), config.rows_per_shard):
                rows = {"start": start, "stop": min(start + config.rows_per_shard, count)}
                tags = dict(shard.tags) | {"start": f"{start:010d}"}
                plans += _plans_of_range(shard, rows, tags, split)
        return plans

    def build(self, config: Config, whole: Inputs, reader: Reader) -> ShardFunction:
        """Keeps the last file open, since its ranges come one after the other."""
        files = _LastFile(config)

        def run(plan: ShardPlan, reader: Reader) -> ShardOutput:
            (shard,) = plan.inputs["sources"]
            table, indices = _rows_of(files.table(shard), plan.slice)
            rows = _read_rows(table)
            counts = _decide(rows, config)
            place = {
                "file_sha256": shard.sha256,
                "source": plan.tags["source"],
                "role": plan.tags["role"],
                "set": plan.tags["set"] or None,
            }
            for index, row in zip(indices, rows, strict=True):
                row.update(place, row_id=row_id(shard.sha256, index), row_index=index)
            table = pa.Table.from_pylist(rows, schema=TABLES["source_rows"].arrow)
            return ShardOutput(table=table, rows_in=len(rows), counts=counts)

        return run


def _plans_of_range(
    shard: Shard, rows: dict[str, Any], tags: dict[str, str], split: Split | None
) -> list[ShardPlan]:
    """One unit, or one for each part of a split."""
    inputs = {"sources": (shard,)}
    if split is None:
        return [ShardPlan(inputs=inputs, slice=rows, tags=tags)]
    plans = []
    for role, low, high in split.parts:
        own = {"role": role, "set": tags["source"] if role == "evaluation" else ""}
        places = {"places": [low, high]}
        plans.append(ShardPlan(inputs=inputs, slice=rows | places, tags=tags | own))
    return plans


def _rows_of(table: pa.Table, where: Mapping[str, Any]) -> tuple[pa.Table, Sequence[int]]:
    """The rows of one unit, and their indices in the file."""
    start, stop = where["start"], where["stop"]
    part = table.slice(start, stop - start)
    if "places" not in where:
        return part, range(start, stop)
    links = [one if isinstance(one, bytes) else str(one).encode() for one in _values(part, "url")]
    found = rows_within(links, *where["places"])
    return part.take(pa.array(found, pa.int64())), [start + index for index in found]


def _count_rows(shard: Shard, config: Config) -> int:
    """Rows of a file whose columns can be told."""
    path = Path(shard.path)
    if not path.is_file():
        raise UsageError(f"source {shard.tags['source']}: there is no file {path}; restore it")
    try:
        with pq.ParquetFile(path, arrow_extensions_enabled=False) as file:
            count, names = file.metadata.num_rows, file.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path.name}: not readable as Parquet: {error}") from error
    _layout(shard, names, config)
    return int(count)


def _layout(shard: Shard, names: Sequence[str], config: Config) -> Layout:
    mapping = config.columns.get(shard.tags["source"])
    try:
        return resolve_layout(names, mapping=mapping, file=Path(shard.path).name)
    except ValueError as error:
        raise UsageError(str(error)) from error


class _LastFile:
    """The mapped columns of the file that was read last."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._sha256, self._table = "", pa.table({})

    def table(self, shard: Shard) -> pa.Table:
        if shard.sha256 != self._sha256:
            self._table = self._read(shard)
            self._sha256 = shard.sha256
        return self._table

    def _read(self, shard: Shard) -> pa.Table:
        path = Path(shard.path)
        data = path.read_bytes()
        if sha256_bytes(data) != shard.sha256:
            raise FoundWrong(
                f"{path.name}: changed since it was added to the ledger; restore it, or give the "
                "new file another name"
            )
        names = pq.ParquetFile(pa.BufferReader(data), arrow_extensions_enabled=False).schema_arrow
        layout = _layout(shard, names.names, self._config)
        needed = list(dict.fromkeys(theirs for _, theirs in layout.columns))
        return layout.apply(read_external(data, name=path.name, columns=needed))


# --- values -----------------------------------------------------------------------------------


def _read_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows with all our columns; a text that is not UTF-8 is None, and `not_utf8` names it."""
    found: dict[str, list[Any]] = {}
    for name in (*_TEXTS, *_SCORES, *_SIZES):
        values = _values(table, name)
        if name in _TEXTS:
            found[name] = [_text(value) for value in values]
        else:
            convert = _size if name in _SIZES else _score
            found[name] = [convert(value) for value in values]
    unreadable = [
        isinstance(value, bytes) and text is None
        for value, text in zip(_values(table, "caption"), found["caption"], strict=True)
    ]
    rows = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    for row, bad in zip(rows, unreadable, strict=True):
        row["outcome"] = "caption_not_utf8" if bad else "kept"
    return rows


def _values(table: pa.Table, name: str) -> Sequence[Any]:
    """A column as Python values; strings as bytes, since a stranger's may not be UTF-8."""
    if name not in table.column_names:
        return [None] * table.num_rows
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array(
            [chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type
        )
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return list(column.to_pylist())


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _score(value: Any) -> float | None:
    return _number(value)


def _size(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 0 < number <= _LARGEST_SIZE else None


# --- decisions --------------------------------------------------------------------------------


def _decide(rows: list[dict[str, Any]], config: Config) -> dict[str, int]:
    """Sets each row's outcome; returns how many kept rows lack a score or a size."""
    seen: set[tuple[str, str]] = set()
    unknown: Counter[str] = Counter()
    for row in rows:
        row["outcome"] = outcome = _outcome(row, config)
        if outcome != "kept":
            continue
        if (row["url"], row["caption"]) in seen:
            row["outcome"] = "duplicate_row"
            continue
        seen.add((row["url"], row["caption"]))
        unknown.update(name for column, name in _UNKNOWN.items() if row[column] is None)
    return dict(unknown)


def _outcome(row: dict[str, Any], config: Config) -> Outcome:
    if not (row["url"] or "").strip():
        return "url_missing"
    if row["outcome"] == "caption_not_utf8":
        return "caption_not_utf8"
    if not (row["caption"] or "").strip():
        return "caption_missing"
    if len(row["caption"]) > config.max_caption_chars:
        return "caption_too_long"
    return _claim(row, config)


def _claim(row: dict[str, Any], config: Config) -> Outcome:
    """What the source claims about the image."""
    if _above(row["pwatermark"], config.max_watermark):
        return "watermark"
    if _above(row["punsafe"], config.max_unsafe):
        return "unsafe"
    sizes = [row[name] for name in _SIZES if row[name] is not None]
    return "too_small" if sizes and min(sizes) < config.min_size else "kept"


def _above(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit
