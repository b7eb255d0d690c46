"""Downloads the links that ingestion kept; every link gets a row, with bytes or with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from pydantic import Field

from pipelines.fetch.img2dataset_adapter import (
    IMG2DATASET_VERSION,
    Downloaded,
    Link,
    download_links,
)
from pipelines.fetch.outcomes import Outcome
from pipelines.fetch.policy import FetchSettings
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

__all__ = ["Config", "DownloadImages", "Outcome"]


class Config(StageConfig):
    """What decides whether a link's bytes are kept; how they are fetched is `FetchSettings`."""

    max_bytes: int = Field(20_000_000, gt=0, description="bytes; a longer body is not kept")
    max_redirects: int = Field(5, ge=0, description="redirects followed, each checked anew")
    honor_opt_out: bool = Field(
        True, description="do not keep what its owner marks against use (X-Robots-Tag, TDMRep, ...)"
    )


class DownloadImages(ShardStage[Config]):
    """`images`: one row for each kept row of `source_rows`.

    A shard is one call of img2dataset's `Downloader`. What a link gave on a day stands: the shard
    is fetched anew only when the `as_of` of its source moves. A body that is no image is `kept`
    here, byte for byte, and judged where it is decoded.

    Args:
        fetch_settings: of this machine; never part of a fingerprint.
    """

    name = "download_images"
    version = 1
    kind = "images"
    config_type = Config

    def __init__(self, fetch_settings: FetchSettings | None = None) -> None:
        self.fetch_settings = fetch_settings or FetchSettings()

    def environment(self, config: Config) -> str:
        """The downloader's version; another one must pass the contract test first."""
        return f"img2dataset=={IMG2DATASET_VERSION}"

    def plan(self, config: Config, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """One unit for each shard of `rows`."""
        return [
            ShardPlan(
                inputs={"rows": (shard,)},
                slice={"as_of": shard.tags.get("as_of", "")},
                tags=dict(shard.tags),
            )
            for shard in inputs["rows"].tables("source_rows")
        ]

    def build(self, config: Config, whole: Inputs, reader: Reader) -> ShardFunction:
        """Settles the limits."""
        settings = replace(
            self.fetch_settings,
            max_bytes=config.max_bytes,
            max_redirects=config.max_redirects,
            honor_opt_out=config.honor_opt_out,
        )

        def run(plan: ShardPlan, reader: Reader) -> ShardOutput:
            columns = ["row_id", "url", "outcome"]
            rows = kept_rows(reader.tables(plan.inputs["rows"], columns)).to_pylist()
            links = [Link(row_id=row["row_id"], url=row["url"]) for row in rows]
            return ShardOutput(table=_table(download_links(links, settings)), rows_in=len(links))

        return run


def _table(done: Sequence[Downloaded]) -> pa.Table:
    return pa.Table.from_pylist([_row(one) for one in done], schema=TABLES["images"].arrow)


def _row(done: Downloaded) -> dict[str, Any]:
    fetched = done.fetched
    return {
        "row_id": done.row_id,
        "outcome": fetched.outcome.value,
        "error": fetched.error,
        "http_status": fetched.status,
        "url": done.url,
        "final_url": fetched.final_url,
        "redirects": list(fetched.redirects),
        "consent": fetched.consent,
        "bytes_len": None if fetched.body is None else len(fetched.body),
        "raw_sha256": done.sha256,
        "raw_md5": done.md5,
        "image": fetched.body,
        "headers": list(fetched.headers),
        "fetched_at": done.fetched_at,
    }
