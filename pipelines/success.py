"""The minimum success rate: a dead network publishes nothing, and its failures are forgotten."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import pyarrow.compute as pc

from pipelines.errors import TooFewSucceeded
from pipelines.runtime.call import Result
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import Store
from storage_schemas.manifest import Shard
from storage_schemas.parquet import footer

__all__ = ["require_success"]


def require_success(store: Store, stage: str, minimum: float) -> Callable[[Result], None]:
    """A check of a finished download, for `StageCall.accept`.

    Where a source has a smaller share of kept rows, the receipts of its shards are removed, so
    that the next run tries them again, and nothing is published.
    """

    def accept(result: Result) -> None:
        reader, by_source = Reader(store), defaultdict[str, list[Shard]](list)
        for shard in result.shards:
            by_source[shard.tags.get("source", "")].append(shard)
        sentences = []
        for source, shards in by_source.items():
            kept, rows, reason = _count(reader, shards)
            if rows and kept < minimum * rows:
                for shard in shards:
                    key = footer(store.local(shard.path))["shard_key"]
                    store.delete(f"_receipts/{stage}/{key}.json")
                how = "all" if kept == 0 else f"{rows - kept} of {rows}"
                sentences.append(f"source {source}: {how} images failed (most often: {reason})")
        if sentences:
            raise TooFewSucceeded(
                f"{'; '.join(sentences)}; nothing was published: mend the network or the links and "
                f"run again, or lower `min_success` ({minimum:g})"
            )

    return accept


def _count(reader: Reader, shards: Sequence[Shard]) -> tuple[int, int, str]:
    """Rows kept, rows in all, and the reason that is met most often."""
    outcomes = reader.tables(shards, ["outcome"]).column("outcome")
    counts = {str(c["values"]): int(c["counts"]) for c in pc.value_counts(outcomes).to_pylist()}
    kept = counts.pop("kept", 0)
    reason = max(counts, key=lambda name: (counts[name], name)) if counts else "none"
    return kept, kept + sum(counts.values()), reason
