"""Every column of every table, defined once; `docs/schemas.md` is generated from here."""

from __future__ import annotations

import pyarrow as pa

from storage_schemas.schema import Column

__all__ = ["COLUMNS", "column"]

_TOKENS = pa.list_(pa.int32())
_VECTOR = pa.list_(pa.float32())
_TEXTS = pa.list_(pa.string())

_ALL = (
    # --- identity -------------------------------------------------------------------------
    Column(name="row_id", type=pa.string(), meaning="digest of source file and row index"),
    Column(
        name="document_id",
        type=pa.string(),
        meaning="digest of image and caption as received; the foreign key after curation",
    ),
    Column(name="example_id", type=pa.string(), meaning="digest of document and memory"),
    Column(name="generation_id", type=pa.string(), meaning="digest of all that made the sample"),
    Column(name="position", type=pa.int64(), meaning="place in the index of this artifact only"),
    # --- source ---------------------------------------------------------------------------
    Column(name="source", type=pa.string(), meaning="name of the source in the recipe"),
    Column(name="file_sha256", type=pa.string(), meaning="SHA-256 of the source file"),
    Column(name="row_index", type=pa.int64(), meaning="row of the source file, from 0"),
    Column(name="role", type=pa.string(), meaning="train, memory, validation or evaluation"),
    Column(name="set", type=pa.string(), nullable=True, meaning="evaluation set of the source"),
    Column(name="group", type=pa.string(), nullable=True, meaning="group scored on its own row"),
    Column(
        name="concept",
        type=pa.string(),
        nullable=True,
        meaning="what the bootstrap resamples together; null: the document itself",
    ),
    Column(
        name="url",
        type=pa.string(),
        nullable=True,
        meaning="link as given",
        personal=True,
        untrusted=True,
    ),
    Column(
        name="caption",
        type=pa.string(),
        nullable=True,
        meaning="text as given; null when there is none or it is not UTF-8",
        personal=True,
        untrusted=True,
    ),
    Column(
        name="width", type=pa.int32(), nullable=True, unit="pixel", meaning="width of the image"
    ),
    Column(
        name="height", type=pa.int32(), nullable=True, unit="pixel", meaning="height of the image"
    ),
    Column(
        name="similarity",
        type=pa.float32(),
        nullable=True,
        unit="cosine",
        meaning="CLIP similarity claimed by the source",
    ),
    Column(
        name="punsafe",
        type=pa.float32(),
        nullable=True,
        unit="probability",
        meaning="claimed by the source; null: unknown",
    ),
    Column(
        name="pwatermark",
        type=pa.float32(),
        nullable=True,
        unit="probability",
        meaning="claimed by the source; null: unknown",
    ),
    Column(
        name="license_claimed",
        type=pa.string(),
        nullable=True,
        meaning="licence claimed by the source",
        untrusted=True,
    ),
    Column(
        name="hash",
        type=pa.string(),
        nullable=True,
        meaning="hash of the image published by the source",
        untrusted=True,
    ),
    Column(
        name="outcome",
        type=pa.string(),
        meaning="kept, or the reason why the row stays behind (a closed list a stage)",
    ),
    # --- download -------------------------------------------------------------------------
    Column(
        name="error",
        type=pa.string(),
        nullable=True,
        meaning="detail of a failure",
        untrusted=True,
        volatile=True,
    ),
    Column(
        name="http_status",
        type=pa.int32(),
        nullable=True,
        meaning="status of the last answer; null: no answer",
    ),
    Column(
        name="final_url",
        type=pa.string(),
        nullable=True,
        meaning="after redirects",
        personal=True,
        untrusted=True,
    ),
    Column(name="redirects", type=_TEXTS, meaning="addresses passed on the way", untrusted=True),
    Column(name="consent", type=pa.string(), nullable=True, meaning="decision on opt-out signals"),
    Column(
        name="bytes_len",
        type=pa.int64(),
        nullable=True,
        unit="byte",
        meaning="size of the body as received",
    ),
    Column(
        name="raw_sha256", type=pa.string(), nullable=True, meaning="SHA-256 of the received bytes"
    ),
    Column(name="raw_md5", type=pa.string(), nullable=True, meaning="MD5 of the received bytes"),
    Column(
        name="headers",
        type=_TEXTS,
        meaning="selected answer headers, `name: value`",
        volatile=True,
        untrusted=True,
    ),
    Column(
        name="fetched_at",
        type=pa.string(),
        nullable=True,
        meaning="end of the request, ISO 8601 UTC",
        volatile=True,
    ),
    Column(
        name="image",
        type=pa.binary(),
        nullable=True,
        meaning="image file: as received (images), normalised PNG (elsewhere)",
        personal=True,
        untrusted=True,
    ),
    # --- curation -------------------------------------------------------------------------
    Column(
        name="pixel_sha256",
        type=pa.string(),
        nullable=True,
        meaning="SHA-256 of size and RGB bytes after normalisation",
    ),
    Column(
        name="perceptual_hash",
        type=pa.string(),
        nullable=True,
        meaning="64-bit difference hash of the normalised image, hexadecimal",
    ),
    Column(name="mode", type=pa.string(), nullable=True, meaning="pixel mode of the file"),
    Column(name="frames", type=pa.int32(), nullable=True, meaning="frames in the file; 1 is kept"),
    Column(
        name="duplicate_of",
        type=pa.string(),
        nullable=True,
        meaning="document that is kept in place of this row",
    ),
    # --- vectors and tokens -----------------------------------------------------------------
    Column(name="text_vector", type=_VECTOR, meaning="unit vector of the caption"),
    Column(name="image_vector", type=_VECTOR, meaning="unit vector of the image"),
    Column(
        name="query_vectors",
        type=pa.list_(_VECTOR),
        meaning="unit vectors of the caption with words dropped, one a draw",
    ),
    Column(
        name="image_query_vectors",
        type=pa.list_(_VECTOR),
        meaning="unit vectors of the image with patches dropped, one a draw",
    ),
    Column(name="codes", type=_TOKENS, meaning="VQ codes, row-major"),
    Column(name="grid_height", type=pa.int32(), unit="code", meaning="rows of the code grid"),
    Column(name="grid_width", type=pa.int32(), unit="code", meaning="columns of the code grid"),
    # --- retrieval --------------------------------------------------------------------------
    Column(name="query", type=pa.string(), meaning="side that asked: text or image"),
    Column(name="draw", type=pa.int32(), meaning="0: whole query; n: n-th draw with dropout"),
    Column(name="context_ids", type=_TEXTS, meaning="documents chosen, by rank"),
    Column(name="context_scores", type=_VECTOR, meaning="inner product with the query"),
    Column(name="context_ranks", type=_TOKENS, meaning="place in the full ranking, from 0"),
    Column(name="skipped_ids", type=_TEXTS, meaning="documents passed over before the last hit"),
    Column(name="skipped_reasons", type=_TEXTS, meaning="why, one each"),
    # --- examples ---------------------------------------------------------------------------
    Column(name="text_tokens", type=_TOKENS, meaning="caption, text vocabulary from 0"),
    Column(name="image_tokens", type=_TOKENS, meaning="image, VQ codes, row-major"),
    Column(name="queries", type=_TEXTS, meaning="side of each query"),
    Column(name="draws", type=_TOKENS, meaning="draw of each query"),
    Column(
        name="hits",
        type=pa.list_(_TOKENS),
        meaning="per query, its contexts by rank, as indices into the candidates",
    ),
    Column(name="candidate_ids", type=_TEXTS, meaning="documents that some query chose"),
    Column(name="candidate_text", type=pa.list_(_TOKENS), meaning="their captions' tokens"),
    Column(name="candidate_image", type=pa.list_(_TOKENS), meaning="their images' codes"),
    # --- training ---------------------------------------------------------------------------
    Column(name="step", type=pa.int64(), meaning="optimiser steps done"),
    Column(name="split", type=pa.string(), meaning="train or validation"),
    Column(name="metric", type=pa.string(), meaning="name of the measure"),
    Column(name="value", type=pa.float64(), meaning="its value"),
    Column(name="tokens", type=pa.int64(), unit="token", meaning="tokens read so far"),
    Column(name="flops", type=pa.float64(), unit="FLOP", meaning="training compute so far"),
    Column(
        name="seconds",
        type=pa.float64(),
        unit="s",
        meaning="process time so far",
        volatile=True,
    ),
    Column(name="batch_digest", type=pa.string(), meaning="SHA-256 of the token ids that were fed"),
    # --- generation -------------------------------------------------------------------------
    Column(name="model", type=pa.string(), meaning="name of the generator in the recipe"),
    Column(name="generator", type=pa.string(), meaning="artifact id of the generator"),
    Column(name="task", type=pa.string(), meaning="image (from caption) or caption (from image)"),
    Column(
        name="prompt",
        type=pa.string(),
        nullable=True,
        meaning="caption that was given; null where the image was",
        personal=True,
        untrusted=True,
    ),
    Column(
        name="prompt_id",
        type=pa.string(),
        nullable=True,
        meaning="evaluation document whose caption or image was the prompt; null: a free prompt",
    ),
    Column(name="memory", type=pa.string(), nullable=True, meaning="name of the memory asked"),
    Column(name="k", type=pa.int32(), meaning="contexts asked for"),
    Column(name="contexts", type=_TEXTS, meaning="documents fed, in the order fed"),
    Column(name="sampler", type=pa.string(), meaning="sampler settings, canonical JSON"),
    Column(name="seed", type=pa.int64(), meaning="seed of this sample"),
    Column(
        name="output_tokens",
        type=_TOKENS,
        meaning="what was written: VQ codes, or text tokens from 0",
    ),
    Column(
        name="log_likelihood",
        type=pa.float32(),
        unit="nat",
        meaning="of the chosen sample under the sampling distribution",
    ),
    Column(
        name="candidate_scores", type=_VECTOR, meaning="score of each candidate; one: not ranked"
    ),
    # --- scores -----------------------------------------------------------------------------
    Column(name="n", type=pa.int64(), meaning="things measured"),
    Column(name="unit", type=pa.string(), meaning="unit of the value"),
    Column(name="low", type=pa.float64(), nullable=True, meaning="lower end of the 95 % interval"),
    Column(name="high", type=pa.float64(), nullable=True, meaning="upper end of the 95 % interval"),
    Column(
        name="better",
        type=pa.string(),
        nullable=True,
        meaning="which way is an improvement: higher or lower",
    ),
    Column(
        name="reference", type=pa.string(), nullable=True, meaning="what the value is compared with"
    ),
    Column(name="protocol", type=pa.string(), meaning="how it was measured, in a sentence"),
)

COLUMNS: dict[str, Column] = {item.name: item for item in _ALL}
if len(COLUMNS) != len(_ALL):
    raise AssertionError("a column is defined twice")


def column(name: str, *, nullable: bool | None = None) -> Column:
    """The column of that name; `nullable` narrows or widens it for one table."""
    found = COLUMNS[name]
    if nullable is None or nullable == found.nullable:
        return found
    return Column(
        name=found.name,
        type=found.type,
        meaning=found.meaning,
        nullable=nullable,
        unit=found.unit,
        volatile=found.volatile,
        personal=found.personal,
        untrusted=found.untrusted,
    )
