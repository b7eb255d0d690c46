from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pytest

from pipelines.records import image_png
from pipelines.runtime.reader import Selection
from pipelines.stages.curate_documents import Config, CurateDocuments, suppressions
from storage_schemas.fingerprint import sha256_bytes
from storage_schemas.ids import caption_sha256, document_id, row_id
from storage_schemas.manifest import Manifest
from storage_schemas.tables import TABLES


@dataclass(frozen=True)
class Row:
    """What one link gave: `pixels` None means that the download failed."""

    caption: str
    pixels: str | None
    raw: str = ""
    decoded: str = "kept"
    selected: str = "kept"


def fill(kind: str, rows: list[dict]) -> pa.Table:
    schema = TABLES[kind].arrow
    empty = {f.name: [] if pa.types.is_list(f.type) else None for f in schema}
    return pa.Table.from_pylist([empty | row for row in rows], schema=schema)


@pytest.fixture
def curate(world, draw) -> Callable[..., Manifest]:
    """Curates files of rows; each file is (role, rows), in ledger order."""
    png = image_png(draw("red", "circle"))

    def tables(name: str, role: str, rows: Sequence[Row]) -> tuple[list[dict], ...]:
        sources, images, normalized = [], [], []
        for index, row in enumerate(rows):
            identity = row_id(name, index)
            place = {"row_id": identity, "source": name, "role": role, "row_index": index}
            place |= {"file_sha256": name, "caption": row.caption, "url": "u", "category": name}
            sources.append(place | {"outcome": row.selected})
            if row.selected != "kept":
                continue
            raw = sha256_bytes((row.raw or row.pixels or "").encode())
            image = {"row_id": identity, "url": "u"}
            if row.pixels is None:
                images.append(image | {"outcome": "http_error"})
                continue
            images.append(image | {"outcome": "kept", "raw_sha256": raw})
            picture = {"row_id": identity, "raw_sha256": raw, "outcome": row.decoded}
            if row.decoded == "kept":
                picture |= {"image": png, "width": 32, "height": 32, "pixel_sha256": row.pixels}
            normalized.append(picture)
        return sources, images, normalized

    def make(*files: tuple[str, Sequence[Row]], config: Config | None = None, suppress=None):
        parts: dict[str, list] = {"source_rows": [], "images": [], "normalized_images": []}
        for order, (role, rows) in enumerate(files):
            tags = {"source": f"f{order}", "role": role, "set": "", "order": f"{order:08d}"}
            for kind, found in zip(parts, tables(f"f{order}", role, rows), strict=True):
                parts[kind].append((fill(kind, found), tags))
        inputs = {
            name: world.publish(kind, parts[kind])
            for name, kind in zip(("rows", "images", "normalized"), parts, strict=True)
        }
        if suppress is not None:
            inputs["suppressions"] = suppressions(suppress)
        return world.run(CurateDocuments(), config or Config(), **inputs)

    return make


def fates(world, manifest: Manifest) -> dict[str, tuple[str, str | None]]:
    return {r["row_id"]: (r["outcome"], r["duplicate_of"]) for r in world.rows(manifest)}


def test_every_row_that_was_selected_has_one_fate(world, curate):
    made = curate(
        (
            "train",
            [
                Row("a", "p1"),
                Row("b", None),
                Row("c", "p3", decoded="truncated"),
                Row("d", "p4", decoded="too_small"),
                Row("e", "p5", selected="watermark"),
                Row("f", "p1", raw="other bytes"),
            ],
        )
    )
    first = document_id(sha256_bytes(b"p1"), caption_sha256("a"))
    assert fates(world, made) == {
        row_id("f0", 0): ("kept", None),
        row_id("f0", 1): ("download_failed", None),
        row_id("f0", 2): ("not_decodable", None),
        row_id("f0", 3): ("too_small", None),
        row_id("f0", 5): ("duplicate", first),
    }
    assert made.rows_in == 5
    assert made.rows_out == 1
    by_row = {row["row_id"]: row for row in world.rows(made)}
    assert by_row[row_id("f0", 0)]["document_id"] == first
    assert by_row[row_id("f0", 1)]["document_id"] is None
    assert {row["category"] for row in by_row.values()} == {"f0"}
    assert [row["image"] is not None for row in by_row.values()].count(True) == 1


def test_an_evaluation_document_wins_over_its_copies_before_and_after(world, curate):
    rows = [Row("mine", "same"), Row("own", "other")]
    made = curate(("train", rows), ("evaluation", [Row("asked", "same")]), ("memory", rows))
    asked = document_id(sha256_bytes(b"same"), caption_sha256("asked"))
    own = document_id(sha256_bytes(b"other"), caption_sha256("own"))
    assert fates(world, made) == {
        row_id("f0", 0): ("duplicate", asked),
        row_id("f0", 1): ("kept", None),
        row_id("f1", 0): ("kept", None),
        row_id("f2", 0): ("duplicate", asked),
        row_id("f2", 1): ("duplicate", own),
    }


def test_pixels_of_another_caption_are_a_copy_only_by_config(world, curate):
    files = [("train", [Row("a", "same"), Row("b", "same"), Row("a", "same")])]
    for config, kept in ((Config(), 1), (Config(duplicates="document"), 2)):
        assert curate(*files, config=config).rows_out == kept


def test_old_shards_keep_their_bytes_when_files_are_added(curate):
    old = ("train", [Row("a", "p1"), Row("b", "p2")])
    first = curate(old)
    more = curate(old, ("train", [Row("z", "p1"), Row("c", "p3")]))
    assert more.shards[0] == first.shards[0]
    assert more.shards_executed == 1
    assert more.rows_out == 3
    hit = curate(old, ("train", [Row("z", "p1"), Row("c", "p3")]), ("evaluation", [Row("e", "p2")]))
    assert hit.shards[0] != first.shards[0]
    assert hit.shards[1] == more.shards[1]


@pytest.mark.parametrize("named", ["row", "document", "raw", "pixels"])
def test_suppression_removes_a_document_and_all_its_copies(world, curate, named):
    files = [
        ("train", [Row("a", "p1"), Row("b", "p2")]),
        ("evaluation", [Row("x", "p1", raw="other")]),
        ("train", [Row("c", "p3")]),
    ]
    before = curate(*files)
    digest = {
        "row": row_id("f0", 0),
        "document": document_id(sha256_bytes(b"p1"), caption_sha256("a")),
        "raw": sha256_bytes(b"p1"),
        "pixels": "p1",
    }[named]
    made = curate(*files, suppress=[digest])
    assert fates(world, made) == {
        row_id("f0", 0): ("suppressed", None),
        row_id("f0", 1): ("kept", None),
        row_id("f1", 0): ("suppressed", None),
        row_id("f2", 0): ("kept", None),
    }
    gone = [row for row in world.rows(made) if row["outcome"] == "suppressed"]
    assert {(row["caption"], row["image"]) for row in gone} == {(None, None)}
    assert made.shards[2] == before.shards[2]
    assert made.artifact_id != before.artifact_id


def test_a_suppression_that_hits_nothing_computes_nothing(curate):
    files = [("train", [Row("a", "p1")])]
    before, after = curate(*files), curate(*files, suppress=["f" * 64])
    assert after.shards == before.shards
    assert after.shards_executed == 0


def test_rows_of_a_shard_that_is_missing_count_as_failed(world, curate):
    made = curate(("train", [Row("a", "p1")]), ("train", [Row("b", "p2")]))
    inputs = {ref.name: ref for ref in made.inputs}
    assert set(inputs) == {"rows", "images", "normalized"}
    from pipelines.runtime.catalog import find_manifest

    found = {
        name: Selection.of(find_manifest(world.store, ref.kind, ref.artifact_id))
        for name, ref in inputs.items()
    }
    for name in ("images", "normalized"):
        found[name] = Selection(manifest=found[name].manifest, shards=found[name].shards[:1])
    again = world.run(CurateDocuments(), Config(), **found)
    assert sorted(fate for fate, _ in fates(world, again).values()) == ["download_failed", "kept"]
