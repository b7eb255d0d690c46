"""Which encoder and tokenizers an artifact was made with, read off manifests.

Models and data fit together when they were made with the same encoder and the same tokenizers. No
file says so of itself; every manifest names its inputs, so the question is answered by walking up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.errors import UsageError
from pipelines.runtime.catalog import find_manifest
from pipelines.runtime.store import Store
from storage_schemas.fingerprint import digest_of
from storage_schemas.manifest import Manifest

__all__ = ["Model", "check_together", "made_with"]

Kind = Literal["encoder", "image_tokenizer", "text_tokenizer"]

_UPWARD = frozenset({"generator", "examples", "contexts", "memory", "embeddings", "image_tokens"})
"""Kinds above which an encoder or a tokenizer may stand."""


@dataclass(frozen=True, slots=True)
class Model:
    """An encoder or a tokenizer."""

    name: str
    """Artifact id; of a public encoder, its name and weights."""
    content: str
    """Digest of what it is: a rebuilt artifact of the same content is the same model."""


def made_with(store: Store, manifest: Manifest, kind: Kind) -> Model | None:
    """The encoder or tokenizer behind an artifact; None where its manifests name none.

    Raises:
        UsageError: when it was made with two that differ.
    """
    found = sorted(_above(store, manifest, kind, {}), key=lambda model: model.name)
    contents = {model.content for model in found}
    if len(contents) > 1:
        raise UsageError(
            f"{manifest.kind} {manifest.artifact_id} was made with {kind} "
            f"{' and with '.join(model.name for model in found)}: make it again with one of them"
        )
    return found[0] if found else None


def check_together(store: Store, one: Manifest, other: Manifest, *kinds: Kind) -> None:
    """Refuses two artifacts that were made with different models.

    Raises:
        UsageError: naming both artifacts and both models.
    """
    for kind in kinds:
        ours, theirs = made_with(store, one, kind), made_with(store, other, kind)
        if ours and theirs and ours.content != theirs.content:
            raise UsageError(
                f"{one.kind} {one.artifact_id} was made with {kind} {ours.name}, but {other.kind} "
                f"{other.artifact_id} with {theirs.name}: use artifacts of one run, or make one of "
                "them again"
            )


def _above(store: Store, manifest: Manifest, kind: Kind, seen: dict[str, set[Model]]) -> set[Model]:
    if manifest.kind == kind:
        return {Model(manifest.artifact_id, manifest.content_digest)}
    if manifest.artifact_id in seen:
        return seen[manifest.artifact_id]
    seen[manifest.artifact_id] = set()  # no cycle is possible; a broken store must not hang
    found = {Model(r.artifact_id, r.content_digest) for r in manifest.inputs if r.kind == kind}
    if kind == "encoder" and manifest.kind == "embeddings":
        found |= _public(manifest.config)
    for ref in manifest.inputs:
        above = find_manifest(store, ref.kind, ref.artifact_id) if ref.kind in _UPWARD else None
        if above is not None:
            found |= _above(store, above, kind, seen)
    seen[manifest.artifact_id] = found
    return found


def _public(config: Mapping[str, Any]) -> set[Model]:
    """A public CLIP is part of the config."""
    spec = config.get("pretrained")
    if not spec:
        return set()
    return {Model(f"{spec['model']} ({spec['pretrained']})", digest_of(spec))}
