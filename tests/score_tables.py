"""Published score tables of a few rows."""

from __future__ import annotations

import pyarrow as pa

from pipelines.runtime.catalog import publish
from storage_schemas.manifest import InputRef, Manifest, Shard
from storage_schemas.parquet import encode_shard, row_digest
from storage_schemas.tables import TABLES


def row(metric="psnr", model="ra", value=1.0, **changes):
    base = {
        "metric": metric,
        "model": model,
        "task": "image",
        "set": "familiar",
        "group": "",
        "k": 2,
        "memory": "m",
        "value": value,
        "n": 9,
        "unit": "dB",
        "low": value - 0.1,
        "high": value + 0.1,
        "better": "higher",
        "reference": None,
        "protocol": "as a test does",
    }
    return base | changes


def manifest(kind, artifact_id, *, shards=(), inputs=(), created_at="", version=None):
    return Manifest(
        kind=kind, schema_version=version or TABLES["scores"].version, artifact_id=artifact_id,
        stage="s", stage_version=1, config={}, inputs=inputs, shards=shards, rows_in=0, rows_out=0,
        dropped={}, counts={}, facts={}, environment="", run_id="", created_at=created_at,
        seconds=0.0, shards_executed=0,
    )  # fmt: skip


def put_scores(store, letter, rows, *, generators=None, created_at="", version=None):
    """Publishes a score table under the id of one letter."""
    table = pa.Table.from_pylist(rows, schema=TABLES["scores"].arrow)
    data = encode_shard(table, TABLES["scores"], shard_key="")
    path, digest = store.put_data("scores", data, ".parquet")
    shard = Shard(
        name="scores", path=path, sha256=digest, bytes=len(data), rows=len(rows),
        row_digest=row_digest(table, TABLES["scores"]),
    )  # fmt: skip
    inputs = tuple(
        InputRef(name=f"generator.{name}", kind="generator", artifact_id=one, content_digest="")
        for name, one in (generators or {}).items()
    )
    made = manifest(
        "scores",
        letter * 64,
        shards=(shard,),
        inputs=inputs,
        created_at=created_at,
        version=version,
    )
    return publish(store, made)
