"""Manifests and references: a bad newest one is an error, never "empty"."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.errors import FoundWrong, UsageError
from pipelines.runtime.catalog import (
    find_manifest,
    manifests,
    move_ref,
    publish,
    read_ref,
    resolve,
)
from storage_schemas.errors import ManifestError
from storage_schemas.manifest import Manifest


def _manifest(artifact_id, kind="memory"):
    return Manifest(
        kind=kind, schema_version=1, artifact_id=artifact_id, stage="s", stage_version=1,
        config={}, inputs=(), shards=(), rows_in=0, rows_out=0, dropped={}, counts={}, facts={},
        environment="", run_id="", created_at="", seconds=0.0, shards_executed=0,
    )  # fmt: skip


@pytest.fixture
def two(store):
    """Two published memories, `memory` pointing first at one, then at the other."""
    pair = _manifest("a" * 64), _manifest("b" * 64)
    for manifest in pair:
        publish(store, manifest)
        move_ref(store, "smoke", "memory", manifest)
    return pair


def test_the_first_to_publish_wins(store):
    first = publish(store, _manifest("a" * 64))
    assert publish(store, replace(first, run_id="another")) == first
    assert find_manifest(store, "memory", "a" * 64) == first
    assert find_manifest(store, "memory", "c" * 64) is None
    assert manifests(store) == [first]


def test_a_reference_points_at_the_newest_and_moves_only_when_it_must(store, two):
    assert read_ref(store, "smoke", "memory") == two[1]
    move_ref(store, "smoke", "memory", two[1])
    assert len(store.list("_refs/smoke/memory")) == 2
    move_ref(store, "smoke", "memory", two[0])
    assert read_ref(store, "smoke", "memory") == two[0]
    assert read_ref(store, "smoke", "generator") is None
    assert read_ref(store, "emoji", "memory") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"flip", b"swap"])
def test_a_bad_newest_reference_names_the_last_good_one(store, two, damage):
    first, last = (store.local(key) for key in store.list("_refs/smoke/memory"))
    good = last.read_bytes()
    bad = {b"flip": good.replace(b"bbb", b"bbc", 1), b"swap": first.read_bytes()}
    last.write_bytes(bad.get(damage, damage))
    with pytest.raises(FoundWrong, match=r"00000001\.json: torn .* is .*00000000\.json"):
        read_ref(store, "smoke", "memory")
    with pytest.raises(FoundWrong, match="torn"):
        move_ref(store, "smoke", "memory", two[0])


def test_a_reference_to_what_is_gone_is_an_error(store, two):
    store.delete(f"memory/{two[1].artifact_id}.json")
    with pytest.raises(FoundWrong, match="which is gone"):
        read_ref(store, "smoke", "memory")


@pytest.mark.parametrize("index", range(0, 700, 41))
def test_a_flipped_byte_in_a_manifest_names_the_file(store, two, index):
    key = f"memory/{two[0].artifact_id}.json"
    data = bytearray(store.get(key))
    data[index % len(data)] ^= 1
    store.local(key).write_bytes(bytes(data))
    with pytest.raises(ManifestError, match=key.replace(".", r"\.")):
        find_manifest(store, "memory", two[0].artifact_id)


def test_a_manifest_under_another_name_is_noticed(store, two):
    key = f"memory/{'c' * 64}.json"
    store.local(key).write_bytes(two[0].to_json())
    with pytest.raises(ManifestError, match="holds the manifest of"):
        find_manifest(store, "memory", "c" * 64)


def test_an_artifact_is_found_by_the_start_of_its_id(store, two):
    publish(store, _manifest("a" * 10 + "b" * 54, kind="generator"))
    assert resolve(store, "memory/aaaaaa") == two[0]
    assert resolve(store, "bbbbbb") == two[1]
    for text, message in {
        "aaaaaa": "2 artifacts have",
        "cccccc": "no artifact has",
        "aaa": "at least 6",
        "cake/aaaaaa": "unknown kind cake",
    }.items():
        with pytest.raises(UsageError, match=message):
            resolve(store, text)
