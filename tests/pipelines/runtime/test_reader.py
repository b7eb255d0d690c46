"""The next reader of an altered file notices, and names it."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pipelines.runtime.executor import LocalExecutor, Outcome
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.run import StageCall, run_stage
from storage_schemas.errors import IntegrityError


@pytest.fixture
def published(store, run, local, toys, tmp_path):
    """(a table artifact, a file artifact)"""
    inputs = {"sources": toys.selection(store, tmp_path, ["a", "b"])}
    return [
        run_stage(
            StageCall(stage=stage, config=toys.Config(), inputs=inputs, label=stage.name),
            store=store,
            executor=local,
            run=run,
        )
        for stage in (toys.Tokens(), toys.Fit())
    ]


def test_a_flipped_byte_in_any_shard_is_noticed(store, published):
    reader = Reader(store)
    for shard in [s for manifest in published for s in manifest.shards]:
        read = reader.table if shard.is_table else reader.file
        path = store.local(shard.path)
        good = path.read_bytes()
        for index in {0, len(good) // 3, len(good) // 2, len(good) - 1}:
            bad = bytearray(good)
            bad[index] ^= 1
            path.write_bytes(bytes(bad))
            with pytest.raises(IntegrityError, match=shard.sha256):
                read(shard)
        path.unlink()
        with pytest.raises(IntegrityError, match=f"{shard.sha256}.*missing"):
            read(shard)
        path.write_bytes(good)
        read(shard)


def test_a_selection_is_named_by_what_it_selects(store, published):
    manifest = published[0]
    one = Selection.of(manifest, source={"a"})
    assert len(one.shards) == 1
    assert one.content_digest != manifest.content_digest
    assert Selection.of(manifest, source={"a", "b"}).content_digest == manifest.content_digest
    grown = replace(manifest, shards=(*manifest.shards, replace(one.shards[0], tags={"x": "y"})))
    assert Selection.of(grown, source={"a"}).content_digest == one.content_digest
    assert Selection.of(manifest, source={"z"}).shards == ()
    assert Selection.of(published[1], role={"train"}).shards == published[1].shards


def test_shards_read_end_to_end_and_with_plain_pyarrow(store, published):
    manifest = published[0]
    table = Reader(store).tables(manifest.shards, ["document_id"])
    assert table.num_rows == manifest.rows_out == 10
    assert table.column_names == ["document_id"]
    plain = [pq.read_table(store.local(s.path)).num_rows for s in manifest.shards]
    assert plain == [5, 5]
    with pytest.raises(ValueError, match="selection is empty"):
        Reader(store).tables([])


def test_the_local_executor_builds_once_and_tries_again():
    built, calls = [], []

    def build():
        built.append(1)
        return work

    def work(item):
        calls.append(item)
        if item == 2 and calls.count(2) < 3:
            raise OSError("flaky")
        return 1 / item

    told = []
    outcomes = LocalExecutor().map(build, [1, 2, 0], done=lambda i, o: told.append((i, o)))
    assert outcomes == [Outcome(1.0), Outcome(0.5), Outcome(None, outcomes[2].error)]
    assert outcomes[2].error == "ZeroDivisionError: division by zero"
    assert told == list(enumerate(outcomes))
    assert built == [1]
    assert calls == [1, 2, 2, 2, 0, 0, 0]
    assert LocalExecutor().map(build, [], done=lambda *_: None) == []
    assert built == [1]


def test_columns_come_alone_and_in_the_order_asked(store, published):
    reader = Reader(store)
    for shard in published[0].tables():
        whole = reader.table(shard)
        names = whole.column_names
        assert reader.table(shard, names[::-1]).equals(whole.select(names[::-1]))
        assert reader.table(shard, names[:1]).equals(whole.select(names[:1]))
