from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.errors import UsageError
from pipelines.stages.ingest_metadata import Config, IngestMetadata
from storage_schemas.ids import row_id


def table(**columns: list) -> pa.Table:
    count = len(next(iter(columns.values())))
    base = {
        "URL": [f"http://h.invalid/{i}.png" for i in range(count)],
        "TEXT": [f"caption {i}" for i in range(count)],
        "WIDTH": [300] * count,
        "HEIGHT": [300] * count,
    }
    return pa.table(base | columns)


def outcomes(world, manifest) -> list[str]:
    rows = sorted(world.rows(manifest), key=lambda row: (row["source"], row["row_index"]))
    return [row["outcome"] for row in rows]


def test_every_reason_has_its_row_and_every_row_its_reason(world, sources_of):
    texts = ["fine", None, "  ", "x" * 30, "marked", "nsfw", "small", "fine", "unknown", "late"]
    urls = [f"u{i}" for i in range(10)]
    urls[7], urls[9] = "u0", None
    source = sources_of(
        table(
            URL=urls,
            TEXT=texts,
            WIDTH=[300, 300, 300, 300, 300, 300, 255, 300, None, 300],
            HEIGHT=[300] * 10,
            pwatermark=[0.5, 0, 0, 0, 0.51, 0, 0, 0.1, math.nan, 0],
            punsafe=[0.5, 0, 0, 0, 0, 0.51, 0, 0, None, 0],
        )
    )
    made = world.run(IngestMetadata(), Config(max_caption_chars=20), sources=source)
    assert outcomes(world, made) == [
        "kept",
        "caption_missing",
        "caption_missing",
        "caption_too_long",
        "watermark",
        "unsafe",
        "too_small",
        "duplicate_row",
        "kept",
        "url_missing",
    ]
    assert made.rows_in == 10 == made.rows_out + sum(made.dropped.values())
    assert made.rows_out == 2
    assert made.counts == {"watermark_unknown": 1, "unsafe_unknown": 1, "size_unknown": 1}


def test_text_that_is_no_utf8_is_a_row_with_a_reason(world, sources_of):
    broken = pa.array([b"good", b"\xff\xfe bad", "na\u00efve \U0001f600".encode()], pa.binary())
    as_text = pa.Array.from_buffers(pa.string(), 3, broken.buffers())
    made = world.run(IngestMetadata(), Config(), sources=sources_of(table(TEXT=as_text)))
    assert outcomes(world, made) == ["kept", "caption_not_utf8", "kept"]
    rows = sorted(world.rows(made), key=lambda row: row["row_index"])
    assert [row["caption"] for row in rows] == ["good", None, "na\u00efve \U0001f600"]


@pytest.mark.parametrize(
    "captions",
    [
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array(["a", "b"], pa.large_string()),
        pa.array([b"a", b"b"], pa.binary()),
        pa.array([1, 2]),
    ],
    ids=["dictionary", "large", "binary", "numbers"],
)
def test_captions_of_any_type_are_read(world, sources_of, captions):
    made = world.run(IngestMetadata(), Config(), sources=sources_of(table(TEXT=captions)))
    assert made.rows_out == 2


def test_sizes_and_hashes_of_any_type_are_read(world, sources_of):
    source = sources_of(
        table(WIDTH=[300.0, math.inf, -1.0], HEIGHT=["400", "x", "1e99"], hash=[7, 8, None])
    )
    made = world.run(IngestMetadata(), Config(), sources=source)
    rows = sorted(world.rows(made), key=lambda row: row["row_index"])
    assert [(r["width"], r["height"], r["hash"]) for r in rows] == [
        (300, 400, "7"),
        (None, None, "8"),
        (None, None, None),
    ]


def test_a_file_is_cut_into_ranges_that_keep_their_row_numbers(world, sources_of):
    source = sources_of(table(TEXT=[f"t{i}" for i in range(7)]), role="evaluation")
    made = world.run(IngestMetadata(), Config(rows_per_shard=3), sources=source)
    assert [shard.rows for shard in made.shards] == [3, 3, 1]
    rows = world.rows(made)
    assert sorted(row["row_index"] for row in rows) == list(range(7))
    (file,) = {row["file_sha256"] for row in rows}
    assert {row["row_id"] for row in rows} == {row_id(file, i) for i in range(7)}
    assert {(row["role"], row["set"]) for row in rows} == {("evaluation", "drawn")}
    assert len({tuple(sorted(shard.tags.items())) for shard in made.shards}) == 3


def test_an_empty_file_gives_one_empty_shard(world, sources_of):
    made = world.run(IngestMetadata(), Config(), sources=sources_of(table(TEXT=["a"]).slice(0, 0)))
    assert [shard.rows for shard in made.shards] == [0]


def test_another_file_leaves_old_shards_alone(world, sources_of):
    one, two = table(TEXT=["a", "b"]), table(TEXT=["c"])
    first = world.run(IngestMetadata(), Config(), sources=sources_of(one))
    both = world.run(IngestMetadata(), Config(), sources=sources_of(one, two))
    assert both.shards[0] == first.shards[0]
    assert both.shards_executed == 1


def test_columns_may_be_mapped_by_source_and_bring_groups(world, sources_of):
    source = sources_of(
        pa.table({"where": ["u"], "what": ["c"], "kind": ["flags"], "category": ["country-flag"]})
    )
    mapping = {"url": "where", "caption": "what", "group": "kind"}
    made = world.run(IngestMetadata(), Config(columns={"source0": mapping}), sources=source)
    (row,) = world.rows(made)
    assert (row["url"], row["caption"], row["group"], row["concept"]) == ("u", "c", "flags", None)
    assert row["category"] == "country-flag"


def test_a_file_without_captions_is_refused_in_a_sentence(world, sources_of):
    source = sources_of(pa.table({"url": ["u"], "stuff": ["c"]}))
    with pytest.raises(UsageError, match=r"caption.*stuff"):  # before anything is computed
        world.run(IngestMetadata(), Config(), sources=source)


def test_a_file_that_changed_is_refused(world, sources_of, tmp_path: Path):
    source = sources_of(table(TEXT=["a"]))
    path = Path(source.shards[0].path)
    path.write_bytes(path.read_bytes()[:-4] + b"PAR1" + b"PAR1")
    with pytest.raises(Exception, match=r"changed since|not readable"):
        world.run(IngestMetadata(), Config(), sources=source)
    path.unlink()
    with pytest.raises(UsageError, match="there is no file"):
        world.run(IngestMetadata(), Config(), sources=source)


def test_a_split_file_gives_each_row_to_one_role(world, sources_of):
    count = 300
    links = [None, *(f"http://h.invalid/{n // 2}.png" for n in range(count - 1))]
    source = sources_of(table(URL=links, TEXT=[f"caption {n}" for n in range(count)]))
    split = {"source0": {"validation": 0.2, "evaluation": 0.3}}
    made = world.run(IngestMetadata(), Config(split=split, rows_per_shard=200), sources=source)
    rows = world.rows(made)
    assert made.rows_in == count == len(rows)
    assert sorted(row["row_index"] for row in rows) == list(range(count))
    assert all(row["row_id"] == row_id(row["file_sha256"], row["row_index"]) for row in rows)
    assert all(row["url"] == links[row["row_index"]] for row in rows)
    roles: dict[str, set] = {}
    for row in rows:
        roles.setdefault(row["url"], set()).add((row["role"], row["set"]))
    assert all(len(found) == 1 for found in roles.values())
    assert set().union(*roles.values()) == {
        ("train", None),
        ("validation", None),
        ("evaluation", "source0"),
    }
    tags = [(s.tags["role"], s.tags["set"], s.tags["start"]) for s in made.shards]
    assert len(set(tags)) == len(tags) == 6


def test_the_share_held_out_is_part_of_a_shards_key(world, sources_of):
    source = sources_of(table(URL=[f"u{n}" for n in range(50)], TEXT=["x"] * 50))
    made = [
        world.run(
            IngestMetadata(), Config(split={"source0": {"evaluation": share}}), sources=source
        )
        for share in (0.2, 0.6)
    ]
    few, many = (sum(s.rows for s in one.shards if s.tags["role"] == "evaluation") for one in made)
    assert 0 < few < many < 50
