"""`conform`: the one door through which tables pass."""

from __future__ import annotations

import pyarrow as pa
import pytest

from storage_schemas.errors import SchemaError
from storage_schemas.schema import rows_by_outcome
from storage_schemas.tables import KINDS, TABLES

SCHEMA = TABLES["image_tokens"]


def _table(ids, **columns):
    base = {
        "document_id": ids,
        "codes": [[1, 2]] * len(ids),
        "grid_height": [1] * len(ids),
        "grid_width": [2] * len(ids),
    }
    return pa.table(base | columns)


def test_conform_orders_casts_and_sorts():
    table = SCHEMA.conform(_table(["b", "a"]).select([3, 2, 1, 0]))
    assert table.schema == SCHEMA.arrow
    assert table.column("document_id").to_pylist() == ["a", "b"]
    assert SCHEMA.conform(table).equals(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (_table(["a"]).drop_columns(["codes"]), r"missing columns \['codes'\]"),
        (_table(["a"], extra=[1]), r"unknown columns \['extra'\]"),
        (_table(["a", "a"]), "1 rows repeat a key"),
        (_table(["a", None]), "null"),
        (_table(["a"], grid_height=[2**40]), "image_tokens"),
        (_table(["a"], grid_height=["tall"]), "image_tokens"),
    ],
)
def test_conform_refuses(table, message):
    with pytest.raises(SchemaError, match=message):
        SCHEMA.conform(table)


def test_rows_are_counted_by_outcome():
    table = pa.table({"outcome": ["kept", "too_small", "kept", "unsafe", "too_small"]})
    assert rows_by_outcome(table, TABLES["images"]) == (2, {"too_small": 2, "unsafe": 1})
    assert rows_by_outcome(_table(["a"]), SCHEMA) == (1, {})


def test_kinds_hold_tables_that_exist():
    for names in KINDS.values():
        assert set(names) <= set(TABLES)
    for kind, table in TABLES.items():
        assert table.kind == kind
        assert set(table.key) <= {c.name for c in table.columns if not c.nullable}
