"""Manifests and receipts: round trip, and any wrong byte is noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_schemas.errors import ManifestError
from storage_schemas.fingerprint import canonical_json, digest_of
from storage_schemas.manifest import InputRef, Manifest, Receipt, Shard

SHARD = Shard(
    name="documents",
    path="documents/data/aa.parquet",
    sha256="aa",
    bytes=10,
    rows=2,
    row_digest="dd",
    tags={"source": "x", "role": "train"},
)
FILE = replace(SHARD, name="index.faiss", path="memory/data/bb.faiss", rows=0, tags={})
RECEIPT = Receipt(
    stage="s", shard_key="k", shards=(SHARD,), rows_in=3, rows_out=2, dropped={"unsafe": 1}
)
MANIFEST = Manifest(
    kind="documents",
    schema_version=1,
    artifact_id="id",
    stage="s",
    stage_version=1,
    config={"a": 0.1, "b": [1, None, "é"]},
    inputs=(InputRef(name="rows", kind="source_rows", artifact_id="i", content_digest="c"),),
    shards=(SHARD, FILE),
    rows_in=3,
    rows_out=2,
    dropped={"unsafe": 1},
    counts={},
    facts={"recall": 1.0},
    environment="e",
    run_id="r",
    created_at="2026-11-24T00:00:00+00:00",
    seconds=1.5,
    shards_executed=1,
)


@pytest.mark.parametrize("record", [RECEIPT, MANIFEST], ids=["receipt", "manifest"])
def test_round_trip(record):
    data = record.to_json()
    assert type(record).from_json(data, name="x") == record
    assert type(record).from_json(data, name="x").to_json() == data


@pytest.mark.parametrize("record", [RECEIPT, MANIFEST], ids=["receipt", "manifest"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_wrong_byte_is_noticed_and_the_file_named(record, data):
    good = record.to_json()
    index = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != good[index]))
    bad = good[:index] + bytes([byte]) + good[index + 1 :]
    with pytest.raises(ManifestError, match=r"some/file\.json"):
        type(record).from_json(bad, name="some/file.json")


@pytest.mark.parametrize("record", [RECEIPT, MANIFEST], ids=["receipt", "manifest"])
@pytest.mark.parametrize("cut", [0, 1, 50, -1])
def test_a_torn_record_is_noticed(record, cut):
    with pytest.raises(ManifestError, match="x: "):
        type(record).from_json(record.to_json()[:cut], name="x")


def test_fields_of_another_release_are_one_sentence():
    body = {"stage": "s", "shards": [], "future": 1}
    data = canonical_json(body | {"digest": digest_of(body)})
    with pytest.raises(ManifestError, match="not those of this release"):
        Receipt.from_json(data, name="x")


def test_content_digest_is_of_content():
    moved = replace(SHARD, path="elsewhere.parquet", sha256="zz", bytes=99)
    assert replace(MANIFEST, shards=(FILE, moved)).content_digest == MANIFEST.content_digest
    later = replace(MANIFEST, run_id="r2", created_at="later", seconds=9.0, facts={})
    assert later.content_digest == MANIFEST.content_digest
    for other in (
        replace(SHARD, row_digest="ee"),
        replace(SHARD, rows=3),
        replace(SHARD, tags={"source": "y", "role": "train"}),
    ):
        changed = replace(MANIFEST, shards=(other, FILE))
        assert changed.content_digest != MANIFEST.content_digest


def test_files_are_found_by_name():
    assert MANIFEST.file("index.faiss") == FILE
    assert MANIFEST.tables() == (SHARD,)
    with pytest.raises(ManifestError, match="has no file model"):
        MANIFEST.file("model")
