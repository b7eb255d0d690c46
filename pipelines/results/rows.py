"""All score rows of a study in one table: what the page of results is written from.

The table is small, so it is kept beside the page: whoever has no store can write the page anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import UsageError
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import Store
from storage_schemas.manifest import Manifest
from storage_schemas.tables import TABLES

__all__ = ["SCHEMA", "Row", "gather", "read_rows", "write_rows"]

Row = dict[str, Any]

SCHEMA = pa.schema(
    [
        pa.field("variant", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("artifact", pa.string(), nullable=False),
        *TABLES["scores"].arrow,
    ]
)
"""Columns of the table `scores`, and whose they are: variant, seed, id of the `scores` artifact."""


def gather(
    store: Store,
    found: Mapping[tuple[str, int], Manifest],
    beside: Mapping[tuple[str, int], Iterable[Row]] | None = None,
) -> list[Row]:
    """The rows of `scores` artifacts by (variant, seed), in an order of their own.

    Args:
        store: of the artifacts.
        found: the artifacts.
        beside: rows that stand in no artifact, by (variant, seed) of `found`.
    """
    reader = Reader(store)
    rows = []
    for (variant, seed), manifest in sorted(found.items()):
        whose = {"variant": variant, "seed": seed, "artifact": manifest.artifact_id}
        table = reader.tables(manifest.tables("scores"))
        rows += [whose | row for row in table.to_pylist()]
        rows += [whose | row for row in (beside or {}).get((variant, seed), ())]
    return sorted(rows, key=lambda row: [str(row[name]) for name in _KEY])


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Writes the table; equal rows give equal bytes."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", compression_level=9)


def read_rows(path: Path) -> list[Row]:
    """Reads it back.

    Raises:
        UsageError: there is no such file, or it is another table.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; run the study first (racm3 study NAME)")
    table = pq.read_table(path)
    if table.schema.names != SCHEMA.names:
        raise UsageError(f"{path}: is no table of a study's scores; write it with racm3 study")
    rows: list[Row] = table.to_pylist()
    return rows


_KEY = ("variant", "seed", *TABLES["scores"].key)
