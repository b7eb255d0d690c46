"""All score rows of a study in one table: what the page of results is written from.

The table is small, so it is kept beside the page: whoever has no store can write the page anew, and
whoever has another store adds the runs that are there. A run is known by its recipe, so that what
was made by other settings or by another version of a stage is never shown beside it.
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

__all__ = ["SCHEMA", "Row", "RunKey", "gather", "join", "read_rows", "write_rows"]

Row = dict[str, Any]
RunKey = tuple[str, int]
"""Variant and seed."""

SCHEMA = pa.schema(
    [
        pa.field("variant", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("artifact", pa.string(), nullable=False),
        pa.field("recipe", pa.string(), nullable=False),
        *TABLES["scores"].arrow,
    ]
)
"""Columns of the table `scores`, and whose they are: variant, seed, id of the `scores` artifact,
digest of the steps that lead to it (`United.recipe`)."""


def gather(
    store: Store,
    found: Mapping[RunKey, Manifest],
    recipes: Mapping[RunKey, str],
    beside: Mapping[RunKey, Iterable[Row]] | None = None,
) -> list[Row]:
    """The rows of `scores` artifacts by (variant, seed), in an order of their own.

    Args:
        store: of the artifacts.
        found: the artifacts.
        recipes: of these runs at least.
        beside: rows that stand in no artifact, by (variant, seed) of `found`.
    """
    reader = Reader(store)
    rows = []
    for (variant, seed), manifest in sorted(found.items()):
        whose = {"variant": variant, "seed": seed, "artifact": manifest.artifact_id}
        whose |= {"recipe": recipes[variant, seed]}
        table = reader.tables(manifest.tables("scores"))
        rows += [whose | row for row in table.to_pylist()]
        rows += [whose | row for row in (beside or {}).get((variant, seed), ())]
    return _sorted(rows)


def join(
    fresh: Iterable[Row], kept: Iterable[Row], recipes: Mapping[RunKey, str]
) -> tuple[list[Row], list[RunKey]]:
    """Rows of runs, and beside them the rows of an earlier table for the runs that they lack.

    Args:
        fresh: what a store has now; a run that is there replaces its earlier rows as a whole.
        kept: of the earlier table.
        recipes: of all runs of the study as it is now.

    Returns:
        The rows, in an order of their own, and the runs of the earlier table that are left out
        because the study has no such run any more or makes it by another recipe.
    """
    rows = list(fresh)
    there = {(row["variant"], row["seed"]) for row in rows}
    left_out = set()
    for row in kept:
        run = row["variant"], row["seed"]
        if run in there:
            continue
        if recipes.get(run) == row["recipe"]:
            rows.append(row)
        else:
            left_out.add(run)
    return _sorted(rows), sorted(left_out)


def _sorted(rows: Iterable[Row]) -> list[Row]:
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
