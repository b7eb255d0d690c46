"""A decoder that dies costs its own row, in the stage too."""

from __future__ import annotations

import hashlib
import io
from dataclasses import fields

import pyarrow as pa
from PIL import Image

from pipelines.decode.child import ChildLimits
from pipelines.decode.normalize import NormalizeOptions
from pipelines.stages.normalize_images import Config, NormalizeImages
from storage_schemas.tables import TABLES

TAGS = {"source": "links", "role": "train", "set": "", "as_of": "2026-01-01", "order": "00000000"}


def saved(image):
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def images_of(files):
    names = TABLES["images"].arrow.names
    rows = [
        dict.fromkeys(names)
        | {
            "row_id": f"{i:04d}",
            "outcome": "kept",
            "url": f"http://pictures.test/{i}",
            "redirects": [],
            "headers": [],
            "bytes_len": len(file),
            "raw_sha256": hashlib.sha256(file).hexdigest(),
            "raw_md5": "",
            "image": file,
        }
        for i, file in enumerate(files)
    ]
    return pa.Table.from_pylist(rows, schema=TABLES["images"].arrow)


def test_a_lost_decoder_is_counted_and_costs_one_row(world):
    small = [saved(Image.new("RGB", (32, 32), (i, 0, 0))) for i in range(3)]
    bomb = saved(Image.new("RGB", (5000, 5000)))
    table = images_of([small[0], bomb, small[1], small[2]])
    images = world.publish("images", [(table, TAGS)])
    tight = NormalizeImages(ChildLimits(memory_bytes=250 * 2**20))
    done = world.run(tight, Config(image_size=16), images=images)
    assert (done.rows_in, done.rows_out) == (4, 3)
    assert done.dropped == {"decoder_failed": 1}
    assert [row["outcome"] for row in world.rows(done)] == [
        "kept", "decoder_failed", "kept", "kept",
    ]  # fmt: skip


def test_more_rows_than_a_batch_keep_their_places(world):
    files = [saved(Image.new("RGB", (20, 20), (i, 255 - i, 0))) for i in range(130)]
    images = world.publish("images", [(images_of(files), TAGS)])
    done = world.run(NormalizeImages(), Config(image_size=None), images=images)
    assert done.rows_out == 130
    for i, row in enumerate(world.rows(done)):
        assert Image.open(io.BytesIO(row["image"])).getpixel((3, 3)) == (i, 255 - i, 0)


def test_the_config_is_what_the_kernel_takes():
    assert set(Config.model_fields) == {field.name for field in fields(NormalizeOptions)}
    NormalizeOptions(**Config().model_dump())
