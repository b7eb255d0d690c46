"""The source ledger: append-only, in order, by content."""

from __future__ import annotations

import pytest

from pipelines.errors import FoundWrong, UsageError
from pipelines.runtime.ledger import NewSource, add_sources, as_selection, read_ledger
from pipelines.runtime.reader import Reader
from storage_schemas.errors import IntegrityError


@pytest.fixture
def source(tmp_path):
    def _source(name, content, **options):
        path = tmp_path / f"{name}.parquet"
        path.write_text(content)
        fields = {"source": "s", "path": path, "role": "train", "as_of": "2026-11-24"} | options
        return NewSource(**fields)

    return _source


def test_files_keep_their_place_whatever_they_are_called(store, source):
    first, second = add_sources(store, "x", [source("a", "1"), source("b", "2")])
    assert [first.n, second.n] == [0, 1]
    again = add_sources(
        store, "x", [source("c", "2", as_of="2027-01-01"), source("d", "3"), source("e", "1")]
    )
    assert [entry.n for entry in again] == [0, 1, 2]
    assert [entry.as_of for entry in again] == ["2026-11-24"] * 3
    assert again[1].path.endswith("c.parquet")
    assert as_selection(again[:2]).content_digest == as_selection([first, second]).content_digest
    assert [entry.n for entry in read_ledger(store, "x")] == [0, 1, 2]
    assert read_ledger(store, "y") == []


def test_wrong_requests_are_one_sentence(store, source, tmp_path):
    add_sources(store, "x", [source("a", "1")])
    with pytest.raises(UsageError, match="in the ledger as train"):
        add_sources(store, "x", [source("a", "1", role="memory")])
    with pytest.raises(UsageError, match=r"there is no file .*none\.parquet"):
        add_sources(store, "x", [source("a", "1", path=tmp_path / "none.parquet")])


def test_a_bad_or_missing_entry_is_an_error(store, source):
    add_sources(store, "x", [source(str(n), str(n)) for n in range(3)])
    middle = store.local("_sources/x/00000001.json")
    good = middle.read_bytes()
    middle.write_bytes(good.replace(b"train", b"trail"))
    with pytest.raises(FoundWrong, match=r"_sources/x/00000001\.json: torn or altered"):
        read_ledger(store, "x")
    middle.unlink()
    with pytest.raises(FoundWrong, match="entry 1 is missing"):
        read_ledger(store, "x")


def test_another_run_that_was_faster_is_believed(store, source, monkeypatch):
    one, two = source("a", "1"), source("b", "2")
    put = type(store).put_if_absent

    def slow(self, key, data):
        monkeypatch.undo()
        add_sources(store, "x", [two, one])
        return put(self, key, data)

    monkeypatch.setattr(type(store), "put_if_absent", slow)
    (entry,) = add_sources(store, "x", [one])
    assert entry.n == 1
    assert len(read_ledger(store, "x")) == 2


def test_a_source_that_changed_after_it_was_added_is_noticed(store, source):
    wanted = source("a", "1")
    (shard,) = as_selection(add_sources(store, "x", [wanted])).shards
    assert Reader(store).file(shard) == wanted.path
    wanted.path.write_text("2")
    with pytest.raises(IntegrityError, match=r"a\.parquet"):
        Reader(store).file(shard)


def test_a_relative_path_is_found_from_anywhere(store, source, tmp_path, monkeypatch):
    wanted = source("a", "1")
    monkeypatch.chdir(tmp_path)
    relative = source("a", "1", path=type(wanted.path)("a.parquet"))
    (shard,) = as_selection(add_sources(store, "x", [relative])).shards
    monkeypatch.chdir("/")
    assert Reader(store).file(shard).read_text() == "1"
