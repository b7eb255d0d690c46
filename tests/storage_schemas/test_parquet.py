"""Shards: same rows, same digest; same table, same bytes; one wrong bit is noticed."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_schemas.columns import COLUMNS
from storage_schemas.errors import IntegrityError, SchemaError
from storage_schemas.fingerprint import sha256_bytes
from storage_schemas.parquet import decode_shard, encode_shard, footer, read_external, row_digest
from storage_schemas.schema import Column, TableSchema
from storage_schemas.tables import TABLES

SCHEMA = TableSchema(
    kind="toy",
    version=1,
    key=("id",),
    meaning="every type there is",
    columns=(
        Column(name="id", type=pa.string(), meaning="key"),
        Column(name="number", type=pa.int32(), meaning="n", nullable=True),
        Column(name="value", type=pa.float64(), meaning="x", nullable=True),
        Column(name="flag", type=pa.bool_(), meaning="f", nullable=True),
        Column(name="blob", type=pa.binary(), meaning="b", nullable=True),
        Column(name="codes", type=pa.list_(pa.int32()), meaning="c", nullable=True),
        Column(name="words", type=pa.list_(pa.string()), meaning="w", nullable=True),
        Column(name="vectors", type=pa.list_(pa.list_(pa.float32())), meaning="v", nullable=True),
        Column(name="when", type=pa.string(), meaning="t", nullable=True, volatile=True),
    ),
)

FLOATS = st.floats(width=32, allow_nan=False)
CELLS = {
    "number": st.none() | st.integers(-(2**31), 2**31 - 1),
    "value": st.none() | FLOATS,
    "flag": st.none() | st.booleans(),
    "blob": st.none() | st.binary(max_size=4),
    "codes": st.none() | st.lists(st.integers(0, 9), max_size=3),
    "words": st.none() | st.lists(st.none() | st.text("ab", max_size=2), max_size=3),
    "vectors": st.none() | st.lists(st.none() | st.lists(FLOATS, max_size=2), max_size=2),
    "when": st.none() | st.text("0123", max_size=2),
}
ROWS = st.lists(st.fixed_dictionaries(CELLS), max_size=8).map(
    lambda rows: [row | {"id": f"{i:03d}"} for i, row in enumerate(rows)]
)


def _table(rows):
    return pa.Table.from_pylist(rows, schema=SCHEMA.arrow)


def _digest(rows):
    return row_digest(_table(rows), SCHEMA)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, data=st.data())
def test_row_digest_sees_values_only(rows, data):
    table = _table(rows)
    whole = row_digest(table, SCHEMA)
    cut = data.draw(st.integers(0, len(rows)))
    chunked = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    assert row_digest(chunked, SCHEMA) == whole
    padded = pa.concat_tables([_table(rows[:1]), table]).slice(min(1, len(rows)))
    assert row_digest(padded, SCHEMA) == whole
    shuffled = data.draw(st.permutations(rows))
    assert row_digest(SCHEMA.conform(_table(shuffled)), SCHEMA) == whole
    later = [row | {"when": "another time"} for row in rows]
    assert _digest(later) == whole


@settings(max_examples=60, deadline=None)
@given(rows=ROWS.filter(len), data=st.data())
def test_row_digest_changes_with_any_cell(rows, data):
    index = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from([n for n in CELLS if n != "when"]))
    other = data.draw(CELLS[name].filter(lambda v: v != rows[index][name]))
    changed = [dict(row) for row in rows]
    changed[index][name] = other
    assert _digest(changed) != _digest(rows)


def test_row_digest_ignores_what_lies_under_a_null():
    null = pa.array([False, True])
    one = pa.Array.from_buffers(
        pa.int32(), 2, [pa.py_buffer(b"\x01"), pa.array([7, 1], pa.int32()).buffers()[1]]
    )
    two = pa.Array.from_buffers(
        pa.int32(), 2, [pa.py_buffer(b"\x01"), pa.array([7, 2], pa.int32()).buffers()[1]]
    )
    assert one.is_null().equals(null)
    tables = [
        _table([{"id": "a"}, {"id": "b"}]).set_column(1, SCHEMA.arrow.field("number"), a)
        for a in (one, two)
    ]
    assert row_digest(tables[0], SCHEMA) == row_digest(tables[1], SCHEMA)


def test_null_empty_and_zero_differ():
    digests = {
        _digest([{"id": "a", "blob": None, "codes": None}]),
        _digest([{"id": "a", "blob": b"", "codes": None}]),
        _digest([{"id": "a", "blob": None, "codes": []}]),
        _digest([{"id": "a", "blob": None, "codes": [0]}]),
        _digest([{"id": "a", "number": 0, "codes": None}]),
    }
    assert len(digests) == 5


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, data=st.data())
def test_same_rows_same_bytes_and_back(rows, data):
    cut = data.draw(st.integers(0, len(rows)))
    table = _table(rows)
    chunked = pa.concat_tables([table.slice(cut), table.slice(0, cut)])
    shard = encode_shard(table, SCHEMA, shard_key="k")
    assert encode_shard(chunked, SCHEMA, shard_key="k") == shard
    back = decode_shard(shard, SCHEMA, sha256=sha256_bytes(shard), name="x")
    assert back.equals(table)
    assert row_digest(back, SCHEMA) == row_digest(table, SCHEMA)


def test_every_flipped_byte_is_noticed_and_the_file_named():
    shard = encode_shard(_table([{"id": "a", "number": 1}, {"id": "b"}]), SCHEMA, shard_key="k")
    sha256 = sha256_bytes(shard)
    for index in range(0, len(shard), 7):
        bad = bytearray(shard)
        bad[index] ^= 0x10
        with pytest.raises(IntegrityError, match=r"toy/data/x\.parquet"):
            decode_shard(bytes(bad), SCHEMA, sha256=sha256, name="toy/data/x.parquet")


def test_pages_carry_checksums_of_their_own():
    """Even a reader who has no manifest notices: the SHA-256 is not the only wall."""
    table = _table([{"id": f"{i:04d}", "number": i} for i in range(200)])
    shard = encode_shard(table, SCHEMA, shard_key="k")
    wrong = 0
    for index in range(4, len(shard) // 2, 11):
        bad = bytearray(shard)
        bad[index] ^= 0x04
        try:
            found = decode_shard(bytes(bad), SCHEMA, sha256=sha256_bytes(bytes(bad)), name="x")
        except (IntegrityError, SchemaError):
            continue
        wrong += not found.equals(table)
    assert wrong == 0


def test_a_shard_of_another_table_is_refused():
    shard = encode_shard(TABLES["image_tokens"].empty(), TABLES["image_tokens"], shard_key="")
    with pytest.raises(SchemaError, match=f"embeddings v{TABLES['embeddings'].version}"):
        decode_shard(shard, TABLES["embeddings"], sha256=sha256_bytes(shard), name="x")


def _sample(column):
    text = {"string": "é'; --", "binary": b"\x00\xff", "int32": 1, "int64": 2, "bool": True}
    kind, depth = column.type, 0
    while pa.types.is_list(kind):
        kind, depth = kind.value_type, depth + 1
    value = text.get(str(kind), 0.5)
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("kind", TABLES)
def test_every_table_opens_with_plain_pyarrow_and_duckdb(kind, tmp_path):
    schema = TABLES[kind]
    row = {column.name: _sample(column) for column in schema.columns}
    table = pa.Table.from_pylist([row], schema=schema.arrow)
    path = tmp_path / f"{kind}.parquet"
    path.write_bytes(encode_shard(table, schema, shard_key="key"))
    assert pq.read_table(path).to_pylist() == [row]
    found = duckdb.sql(f"select * from '{path}'")
    assert found.columns == [column.name for column in schema.columns]
    assert found.fetchall() == [tuple(row.values())]
    assert footer(path)["kind"] == kind
    assert footer(path)["shard_key"] == "key"
    empty = encode_shard(schema.empty(), schema, shard_key="")
    assert decode_shard(empty, schema, sha256=sha256_bytes(empty), name=kind).num_rows == 0


def test_every_column_is_used_and_of_a_type_that_every_engine_reads():
    used = {column.name for table in TABLES.values() for column in table.columns}
    assert used == set(COLUMNS)
    plain = {"int32", "int64", "float", "double", "bool", "string", "binary"}
    for column in COLUMNS.values():
        kind = column.type
        while pa.types.is_list(kind):
            kind = kind.value_type
        assert str(kind) in plain, column.name


def test_a_strangers_file_is_read_and_an_extension_type_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"URL": ["http://a"], "TEXT": ["b"]}), path)
    assert read_external(path.read_bytes(), name="x", columns=["URL"]).column_names == ["URL"]
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(__import__("numpy").zeros((2, 3)))
    pq.write_table(pa.table({"t": tensor}), path)
    with pytest.raises(SchemaError, match="column t is an extension type"):
        read_external(path.read_bytes(), name="x")
    with pytest.raises(SchemaError, match="x: not readable as Parquet"):
        read_external(b"<html>", name="x")
