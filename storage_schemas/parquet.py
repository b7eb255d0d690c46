"""Writing and reading shards: pinned writer options, page checksums, digests.

Same table and same pyarrow: same bytes. A shard read back is checked twice: its SHA-256 against
the manifest and every page against its own checksum (without them Parquet does not notice most
flipped bits).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage_schemas.errors import IntegrityError, SchemaError
from storage_schemas.fingerprint import sha256_bytes
from storage_schemas.schema import TableSchema

__all__ = ["decode_shard", "encode_shard", "footer", "read_external", "row_digest"]

ZSTD_LEVEL = 3
ROW_GROUP_ROWS = 4096


def encode_shard(table: pa.Table, schema: TableSchema, *, shard_key: str) -> bytes:
    """The bytes of one shard; equal for equal tables.

    The footer names kind, schema version and shard key, so that a lone file still says what it is.
    """
    origin = {"kind": schema.kind, "schema_version": str(schema.version), "shard_key": shard_key}
    table = schema.conform(table).replace_schema_metadata(origin)
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        version="2.6",
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        row_group_size=ROW_GROUP_ROWS,
        write_page_checksum=True,
        use_dictionary=False,
        write_statistics=True,
        store_schema=True,
    )
    return sink.getvalue()


def decode_shard(
    data: bytes, schema: TableSchema, *, sha256: str, name: str, columns: list[str] | None = None
) -> pa.Table:
    """Reads a shard back, or says which file is not what was published.

    Args:
        data: The whole file; all of its bytes are checked.
        schema: What it should hold.
        sha256: Of the bytes.
        name: Of the file, for errors.
        columns: Those to decode, in this order; none: all.

    Raises:
        IntegrityError: when the bytes differ from `sha256`, or a page fails its checksum.
        SchemaError: when the columns are not those of `schema`.
    """
    if sha256_bytes(data) != sha256:
        raise IntegrityError(
            f"{name}: the bytes are not those that were published (SHA-256 differs); "
            "restore the file from a copy, or delete the manifest that names it and run again"
        )
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        if file.schema_arrow.remove_metadata() != schema.arrow.remove_metadata():
            raise SchemaError(
                f"{name}: its columns are not those of {schema.kind} v{schema.version}"
            )
        return file.read() if columns is None else file.read(columns).select(columns)
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{name}: not readable as Parquet: {error}") from error


def footer(path: Path) -> Mapping[str, str]:
    """Kind, schema version and shard key out of a shard's footer."""
    metadata = pq.read_schema(path).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def read_external(data: bytes, *, name: str, columns: list[str] | None = None) -> pa.Table:
    """Reads a stranger's Parquet; extension types are refused before anything is decoded.

    (An extension type may name Python code to run: GHSA-mw35-8rx3-xf9r.)

    Raises:
        SchemaError: when the file is not Parquet or declares an extension type.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), arrow_extensions_enabled=False)
        for field in file.schema_arrow:
            declared = (field.metadata or {}).get(b"ARROW:extension:name")
            if isinstance(field.type, pa.BaseExtensionType) or declared:
                raise SchemaError(f"{name}: column {field.name} is an extension type; refused")
        return file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{name}: not readable as Parquet: {error}") from error


def row_digest(table: pa.Table, schema: TableSchema) -> str:
    """SHA-256 over the rows' values, volatile columns aside.

    Independent of chunking, of the Parquet writer and of null buffers' layout: hashes, column by
    column, the name, the type, which values are null, and the values.
    """
    digest = hashlib.sha256()
    for declared in schema.columns:
        if declared.volatile:
            continue
        column = table.column(declared.name)
        digest.update(f"\x00{declared.name}\x00{declared.type}\x00{len(column)}\x00".encode())
        for piece in _value_bytes(column.chunks or [pa.array([], column.type)]):
            digest.update(piece)
    return digest.hexdigest()


def _value_bytes(chunks: Sequence[pa.Array]) -> Iterator[bytes]:
    """The values of a column in one defined form, whatever its chunks and buffers look like.

    First which values are null, then lengths, then values, each over all chunks.
    """
    kind = chunks[0].type
    yield from (_fixed_bytes(chunk.is_null().cast(pa.int8())) for chunk in chunks)
    if pa.types.is_list(kind):
        lengths = (chunk.value_lengths().fill_null(0) for chunk in chunks)
        yield from (_fixed_bytes(length.cast(pa.int64())) for length in lengths)
        yield from _value_bytes([chunk.flatten() for chunk in chunks])
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        full = [chunk.cast(pa.binary()).fill_null(b"") for chunk in chunks]
        yield from (_fixed_bytes(pc.binary_length(chunk).cast(pa.int64())) for chunk in full)
        yield from (_joined(chunk) for chunk in full)
    elif pa.types.is_boolean(kind):
        yield from (_fixed_bytes(chunk.fill_null(False).cast(pa.int8())) for chunk in chunks)
    else:
        yield from (_fixed_bytes(chunk.fill_null(0)) for chunk in chunks)


def _fixed_bytes(array: pa.Array) -> bytes:
    if len(array) == 0:
        return b""
    width = array.type.bit_width // 8
    start = array.offset * width
    return bytes(memoryview(array.buffers()[1])[start : start + len(array) * width])


def _joined(array: pa.Array) -> bytes:
    """The bytes of a binary array without nulls, end to end."""
    if len(array) == 0:
        return b""
    offsets = memoryview(array.buffers()[1]).cast("i")
    first, last = offsets[array.offset], offsets[array.offset + len(array)]
    data = array.buffers()[2]
    return b"" if data is None else bytes(memoryview(data)[first:last])
