"""Which models artifacts were made with, and which of them do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UsageError
from pipelines.made_with import check_together, made_with
from pipelines.runtime.catalog import publish
from pipelines.runtime.store import LocalStore
from storage_schemas.fingerprint import digest_of
from storage_schemas.manifest import InputRef, Manifest


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def artifact(store: LocalStore, kind: str, name: str, *inputs: Manifest, **config: Any) -> Manifest:
    return publish(
        store,
        Manifest(
            kind=kind,
            schema_version=1,
            artifact_id=digest_of([kind, name]),
            stage="test",
            stage_version=1,
            config=config,
            inputs=tuple(
                InputRef(
                    name=one.kind,
                    kind=one.kind,
                    artifact_id=one.artifact_id,
                    content_digest=digest_of(one.artifact_id),
                )
                for one in inputs
            ),
            shards=(),
            rows_in=0,
            rows_out=0,
            dropped={},
            counts={},
            facts={},
            environment="",
            run_id="",
            created_at="",
            seconds=0.0,
            shards_executed=0,
        ),
    )


def road(store: LocalStore, name: str, encoder: Manifest | None = None, **config: Any) -> Any:
    """Embeddings, memory, contexts, examples, generator."""
    inputs = [encoder] if encoder else []
    embeddings = artifact(store, "embeddings", name, *inputs, **config)
    memory = artifact(store, "memory", name, embeddings)
    contexts = artifact(store, "contexts", name, memory, embeddings)
    tokenizer = artifact(store, "image_tokenizer", name)
    tokens = artifact(store, "image_tokens", name, tokenizer)
    examples = artifact(store, "examples", name, contexts, tokens)
    return memory, artifact(store, "generator", name, examples)


def test_models_are_found_above(store: LocalStore) -> None:
    encoder = artifact(store, "encoder", "a")
    memory, generator = road(store, "a", encoder)
    for one in (memory, generator):
        found = made_with(store, one, "encoder")
        assert found is not None
        assert found.name == encoder.artifact_id
    tokenizer = made_with(store, generator, "image_tokenizer")
    assert tokenizer is not None
    assert tokenizer.name == digest_of(["image_tokenizer", "a"])
    assert made_with(store, memory, "image_tokenizer") is None
    assert made_with(store, encoder, "encoder") is not None


def test_what_was_made_with_another_model_is_refused_by_all_four_ids(store: LocalStore) -> None:
    a, b = (artifact(store, "encoder", name) for name in "ab")
    (memory, generator), (other, _) = road(store, "a", a), road(store, "b", b)
    check_together(store, generator, memory, "encoder")
    with pytest.raises(UsageError) as refused:
        check_together(store, generator, other, "encoder")
    for one in (generator, other, a, b):
        assert one.artifact_id in str(refused.value)


def test_a_public_encoder_is_known_by_name_and_weights(store: LocalStore) -> None:
    specs = [{"model": "ViT-B-32", "pretrained": tag} for tag in ("laion2b", "openai")]
    (memory, generator), (other, _) = (
        road(store, str(i), pretrained=spec) for i, spec in enumerate(specs)
    )
    check_together(store, generator, memory, "encoder")
    with pytest.raises(UsageError, match=r"ViT-B-32 \(laion2b\).*ViT-B-32 \(openai\)"):
        check_together(store, generator, other, "encoder")


def test_what_no_manifest_tells_is_not_refused(store: LocalStore) -> None:
    memory, _ = road(store, "a", artifact(store, "encoder", "a"))
    check_together(store, artifact(store, "generator", "alone"), memory, "encoder")


def test_an_artifact_of_two_models_is_refused(store: LocalStore) -> None:
    a, b = (artifact(store, "image_tokenizer", name) for name in "ab")
    both = artifact(
        store,
        "examples",
        "both",
        artifact(store, "image_tokens", "a", a),
        artifact(store, "image_tokens", "b", b),
    )
    with pytest.raises(UsageError, match=f"({a.artifact_id}|{b.artifact_id}).* and with"):
        made_with(store, both, "image_tokenizer")
