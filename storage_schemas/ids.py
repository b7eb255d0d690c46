"""The identities of rows: what a foreign key means.

| id | made of |
|---|---|
| `row_id` | digest of the source file, index of the row in it |
| `document_id` | SHA-256 of the image as received, SHA-256 of the caption as received |
| `example_id` | document, memory (candidate contexts differ by memory) |
| `generation_id` | model, task, prompt, contexts in the order fed, sampler settings, seed, box |
"""

from __future__ import annotations

from collections.abc import Sequence

from storage_schemas.fingerprint import digest_of, sha256_bytes

__all__ = ["caption_sha256", "document_id", "example_id", "generation_id", "row_id"]


def row_id(source_file_sha256: str, row_index: int) -> str:
    """Identity of one row of a source file (`row_index` counts from 0)."""
    return digest_of(["row", source_file_sha256, row_index])


def caption_sha256(caption: str) -> str:
    """SHA-256 of the caption as received, before any cleaning."""
    return sha256_bytes(caption.encode("utf-8", errors="surrogatepass"))


def document_id(raw_image_sha256: str, raw_caption_sha256: str) -> str:
    """Identity of a document: the same image and caption are one document, whoever linked them."""
    return digest_of(["document", raw_image_sha256, raw_caption_sha256])


def example_id(document: str, memory: str) -> str:
    """Identity of an example: a document with candidates from one memory."""
    return digest_of(["example", document, memory])


def generation_id(
    *,
    model: str,
    task: str,
    prompt: str,
    contexts: Sequence[str],
    sampler: str,
    seed: int,
    box: Sequence[int] | None = None,
) -> str:
    """Identity of one generation; equal inputs give the same generation.

    Args:
        model: content digest of the generator.
        task: `image`, `caption`, `infill`, `edit` or `demonstrate`.
        prompt: the document id of an evaluation prompt, or the text itself.
        contexts: document ids in the order in which they were fed.
        sampler: digest of the sampler settings.
        seed: of this sample.
        box: pixels drawn anew: left, top, right, bottom; None: the whole.
    """
    hole = [] if box is None else [list(box)]
    return digest_of(["generation", model, task, prompt, list(contexts), sampler, seed, *hole])
