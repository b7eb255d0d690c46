"""A table's declaration and the one door through which tables pass: `TableSchema.conform`."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from storage_schemas.errors import SchemaError

__all__ = ["Column", "TableSchema", "rows_by_outcome"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column, defined once (`storage_schemas.columns`) and used by every table that has it."""

    name: str
    type: pa.DataType
    """One that every engine reads: int32/64, float32/64, bool, string, binary, lists of these."""
    meaning: str
    nullable: bool = False
    unit: str = ""
    volatile: bool = False
    """Differs between two runs on the same input (times, rates); stays out of row digests."""
    personal: bool = False
    """May hold personal data."""
    untrusted: bool = False
    """Written by strangers: escape it wherever it is shown."""

    def field(self) -> pa.Field:
        """The Arrow field, its meaning and flags as metadata."""
        flags = {
            "meaning": self.meaning,
            "unit": self.unit,
            "volatile": str(self.volatile).lower(),
            "personal": str(self.personal).lower(),
            "untrusted": str(self.untrusted).lower(),
        }
        return pa.field(self.name, self.type, nullable=self.nullable, metadata=flags)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSchema:
    """Kind, version, columns, key and order of a table."""

    kind: str
    version: int
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    """Columns that identify a row; unique within a shard; shards are sorted by them."""
    meaning: str
    outcome: str | None = None
    """Column whose value `kept` sends a row on; any other value is why it stays behind."""

    @property
    def arrow(self) -> pa.Schema:
        """The Arrow schema, in column order."""
        return pa.schema([column.field() for column in self.columns])

    @property
    def stable_columns(self) -> tuple[str, ...]:
        """Names of the columns that enter a row digest."""
        return tuple(column.name for column in self.columns if not column.volatile)

    def conform(self, table: pa.Table) -> pa.Table:
        """Returns `table` with exactly the declared columns and types, sorted by key.

        Raises:
            SchemaError: on a missing or surplus column, a type that does not cast without loss
                (float64 to float32 is rounded), a null where none may be, or a repeated key.
        """
        self._check_names(table)
        try:
            table = table.select([c.name for c in self.columns]).cast(self.arrow)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise SchemaError(f"table {self.kind}: {error}") from error
        for column in self.columns:
            if not column.nullable and table.column(column.name).null_count:
                raise SchemaError(f"table {self.kind}: column {column.name} holds nulls")
        table = table.sort_by([(name, "ascending") for name in self.key])
        self._check_key(table)
        return table.combine_chunks()

    def empty(self) -> pa.Table:
        """A table of no rows."""
        return self.arrow.empty_table()

    def _check_names(self, table: pa.Table) -> None:
        declared, found = {c.name for c in self.columns}, set(table.column_names)
        if declared != found:
            raise SchemaError(
                f"table {self.kind}: missing columns {sorted(declared - found)}, "
                f"unknown columns {sorted(found - declared)}"
            )

    def _check_key(self, table: pa.Table) -> None:
        if table.num_rows < 2:
            return
        unique = table.group_by(list(self.key), use_threads=False).aggregate([]).num_rows
        if unique != table.num_rows:
            raise SchemaError(
                f"table {self.kind}: {table.num_rows - unique} rows repeat a key {self.key}"
            )


def rows_by_outcome(table: pa.Table, schema: TableSchema) -> tuple[int, dict[str, int]]:
    """Counts the rows that go on and, by reason, those that stay behind.

    Returns:
        (rows kept, {reason: rows}); a table without an outcome column keeps everything.
    """
    if schema.outcome is None:
        return table.num_rows, {}
    counts = pc.value_counts(table.column(schema.outcome)).to_pylist()
    by_reason = {str(c["values"]): int(c["counts"]) for c in counts}
    return by_reason.pop("kept", 0), dict(sorted(by_reason.items()))
