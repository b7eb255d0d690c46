"""From kept rows to images to normalised images, through the stage runner."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from pipelines.fetch.policy import FetchSettings
from pipelines.sources.image_host import serve_images
from pipelines.stages import download_images, normalize_images
from pipelines.stages.download_images import DownloadImages
from pipelines.stages.normalize_images import NormalizeImages
from storage_schemas.tables import TABLES

TAGS = {"source": "links", "role": "train", "set": "", "as_of": "2026-01-01", "order": "00000000"}


def picture(seed, size=24):
    sink = io.BytesIO()
    Image.new("RGB", (size, size + seed % 3), (seed % 256, 80, 200)).save(sink, "PNG")
    return sink.getvalue()


def source_rows(urls, outcomes=None):
    names = TABLES["source_rows"].arrow.names
    rows = [
        dict.fromkeys(names)
        | {
            "row_id": hashlib.sha256(f"row{i}".encode()).hexdigest(),
            "file_sha256": "f",
            "row_index": i,
            "source": "links",
            "role": "train",
            "url": url,
            "caption": f"picture {i}",
            "outcome": outcomes[i] if outcomes else "kept",
        }
        for i, url in enumerate(urls)
    ]
    return pa.Table.from_pylist(rows, schema=TABLES["source_rows"].arrow)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "host"
    made.mkdir()
    for i in range(20):
        (made / f"{i}.png").write_bytes(picture(i))
    (made / "html.png").write_bytes(b"<html>not here</html>")
    (made / "torn.png").write_bytes(picture(1, size=200)[:120])
    return made


@pytest.fixture
def settings(folder):
    with serve_images(folder) as host:
        yield FetchSettings(host_map={"pictures.test": host.netloc}, deadline=5.0, threads=4)


def links(*names):
    return [f"http://pictures.test/{name}.png" for name in names]


def test_every_row_goes_on_or_says_why_not(world, settings, folder):
    good = links(*range(20))
    bad = [*links("gone", "html", "torn"), "file:///etc/passwd", "http://127.0.0.1/x.png"]
    table = source_rows([*good, *bad, None], ["kept"] * 25 + ["url_missing"])
    rows = world.publish("source_rows", [(table, TAGS)])
    images = world.run(DownloadImages(settings), download_images.Config(), rows=rows)
    assert (images.rows_in, images.rows_out) == (25, 22)
    assert images.dropped == {"http_error": 1, "refused_address": 1, "refused_scheme": 1}
    assert images.shards[0].tags == TAGS
    by_url = {row["url"]: row for row in world.rows(images)}
    for i, url in enumerate(good):
        row = by_url[url]
        raw = (folder / f"{i}.png").read_bytes()
        assert (row["image"], row["bytes_len"], row["http_status"]) == (raw, len(raw), 200)
        assert row["raw_sha256"] == hashlib.sha256(raw).hexdigest()
        assert row["raw_md5"] == hashlib.md5(raw).hexdigest()
        assert (row["final_url"], row["redirects"]) == (url, [])
        assert (row["consent"], row["error"]) == ("no_signal", None)
    assert by_url[bad[0]]["http_status"] == 404

    config = normalize_images.Config(image_size=16, min_side=8)
    normal = world.run(NormalizeImages(), config, images=images)
    assert (normal.rows_in, normal.rows_out) == (22, 20)
    assert normal.dropped == {"not_an_image": 1, "truncated": 1}
    assert normal.shards[0].tags == TAGS
    pictures = [row for row in world.rows(normal) if row["outcome"] == "kept"]
    assert {Image.open(io.BytesIO(row["image"])).size for row in pictures} == {(16, 16)}
    assert {(row["width"], row["height"], row["mode"]) for row in pictures} == {(16, 16, "RGB")}
    raw = {row["row_id"]: row["raw_sha256"] for row in world.rows(images)}
    assert all(row["raw_sha256"] == raw[row["row_id"]] for row in world.rows(normal))


def test_the_same_links_give_the_same_rows_wherever_they_are_served(world, settings, folder):
    rows = world.publish("source_rows", [(source_rows(links(*range(8), "gone")), TAGS)])
    first = world.run(DownloadImages(settings), download_images.Config(), rows=rows)
    digests = {shard.row_digest for shard in first.shards}
    moved = folder.rename(folder.parent / "elsewhere")
    other = type(world)(type(world.store)(folder.parent / "other"))
    again = other.publish("source_rows", [(source_rows(links(*range(8), "gone")), TAGS)])
    with serve_images(moved) as host:
        anew = FetchSettings(host_map={"pictures.test": host.netloc}, threads=3)
        second = other.run(DownloadImages(anew), download_images.Config(), rows=again)
    assert {shard.row_digest for shard in second.shards} == digests
    assert second.artifact_id == first.artifact_id


def test_only_a_new_day_fetches_again(world, settings):
    table = source_rows(links(1, 2))
    config = download_images.Config()
    first = world.run(
        DownloadImages(settings), config, rows=world.publish("source_rows", [(table, TAGS)])
    )
    later = TAGS | {"as_of": "2026-02-01", "order": "00000001"}
    other = source_rows(links(3))
    other = other.set_column(0, other.schema.field(0), pa.array(["later"]))
    both = world.publish("source_rows", [(table, TAGS), (other, later)])
    second = world.run(DownloadImages(settings), config, rows=both)
    assert (first.shards_executed, second.shards_executed) == (1, 1)
    moved = world.publish("source_rows", [(table, TAGS | {"as_of": "2026-03-01"})])
    assert world.run(DownloadImages(settings), config, rows=moved).shards_executed == 1


def test_empty_shards_and_shards_without_a_kept_row(world, settings):
    tables = [(source_rows([]), TAGS), (source_rows([None], ["url_missing"]), TAGS)]
    rows = world.publish("source_rows", tables)
    images = world.run(DownloadImages(settings), download_images.Config(), rows=rows)
    assert (images.rows_in, images.rows_out, len(images.shards)) == (0, 0, 2)
    normal = world.run(NormalizeImages(), normalize_images.Config(), images=images)
    assert (normal.rows_in, normal.rows_out, len(normal.shards)) == (0, 0, 2)


def test_all_images_failing_is_a_result(world, settings):
    rows = world.publish("source_rows", [(source_rows(links("a", "b", "c")), TAGS)])
    images = world.run(DownloadImages(settings), download_images.Config(), rows=rows)
    assert (images.rows_out, images.dropped) == (0, {"http_error": 3})


def test_the_config_decides_what_is_kept(world, settings):
    rows = world.publish("source_rows", [(source_rows(links(0, 1, "torn")), TAGS)])
    config = download_images.Config(max_bytes=100)
    images = world.run(DownloadImages(settings), config, rows=rows)
    assert Counter(row["outcome"] for row in world.rows(images)) == {"kept": 2, "too_large": 1}


def test_stages_cross_to_workers(settings):
    assert pickle.loads(pickle.dumps(DownloadImages(settings))).fetch_settings == settings
    assert pickle.loads(pickle.dumps(NormalizeImages())).limits == NormalizeImages().limits
    environment = DownloadImages().environment(download_images.Config())
    assert environment == "img2dataset==1.47.0"


def test_nothing_is_left_behind(world, settings, monkeypatch, tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    rows = world.publish("source_rows", [(source_rows(links(0, "gone")), TAGS)])
    world.run(DownloadImages(settings), download_images.Config(), rows=rows)
    assert list(Path(private).iterdir()) == []
