"""Manifests and references: how published artifacts are found."""

from __future__ import annotations

import json

from pipelines.errors import FoundWrong, UsageError
from pipelines.runtime.store import Store
from storage_schemas.errors import ManifestError
from storage_schemas.fingerprint import canonical_json, digest_of
from storage_schemas.manifest import Manifest
from storage_schemas.tables import KINDS

__all__ = ["find_manifest", "manifests", "move_ref", "publish", "read_ref", "resolve"]


def find_manifest(store: Store, kind: str, artifact_id: str) -> Manifest | None:
    """The manifest of an artifact, or None when it was never published.

    Raises:
        ManifestError: when it is torn or altered.
    """
    key = f"{kind}/{artifact_id}.json"
    data = store.get(key)
    return None if data is None else _manifest(data, key)


def _manifest(data: bytes, key: str) -> Manifest:
    manifest = Manifest.from_json(data, name=key)
    if key != f"{manifest.kind}/{manifest.artifact_id}.json":
        raise ManifestError(f"{key}: holds the manifest of {manifest.kind} {manifest.artifact_id}")
    return manifest


def publish(store: Store, manifest: Manifest) -> Manifest:
    """Makes an artifact visible; when another run was first, its manifest is returned."""
    store.put_if_absent(f"{manifest.kind}/{manifest.artifact_id}.json", manifest.to_json())
    found = find_manifest(store, manifest.kind, manifest.artifact_id)
    if found is None:
        raise ManifestError(f"{manifest.kind} {manifest.artifact_id}: vanished while published")
    return found


def manifests(store: Store, kind: str | None = None) -> list[Manifest]:
    """All published manifests (of one kind)."""
    found = []
    for one in [kind] if kind else list(KINDS):
        keys = [k for k in store.list(one) if k.count("/") == 1 and k.endswith(".json")]
        found += [_manifest(store.get(key) or b"", key) for key in keys]
    return found


def resolve(store: Store, text: str) -> Manifest:
    """An artifact by its id, by a prefix of at least 6 digits, or by `kind/id`.

    Raises:
        UsageError: when there is none, or more than one.
    """
    kind, _, prefix = text.rpartition("/")
    if len(prefix) < 6:
        raise UsageError(
            f"artifact {text}: give at least 6 digits of its id (racm3 status lists them)"
        )
    if kind and kind not in KINDS:
        raise UsageError(f"artifact {text}: unknown kind {kind}; kinds are {', '.join(KINDS)}")
    keys = [
        key
        for one in ([kind] if kind else list(KINDS))
        for key in store.list(one)
        if key.count("/") == 1 and key.split("/")[1].startswith(prefix)
    ]
    if len(keys) != 1:
        what = "no artifact has" if not keys else f"{len(keys)} artifacts have"
        raise UsageError(f"artifact {text}: {what} an id that starts so (racm3 status lists them)")
    return _manifest(store.get(keys[0]) or b"", keys[0])


def move_ref(store: Store, namespace: str, name: str, manifest: Manifest) -> None:
    """Points a name at an artifact: a new numbered file per move, nothing overwritten."""
    current = read_ref(store, namespace, name)
    if current is not None and current.artifact_id == manifest.artifact_id:
        return
    number = len(store.list(f"_refs/{namespace}/{name}"))
    while not store.put_if_absent(
        f"_refs/{namespace}/{name}/{number:08d}.json", _ref_bytes(manifest, number)
    ):
        number += 1


def _ref_bytes(manifest: Manifest, number: int) -> bytes:
    body = {"kind": manifest.kind, "artifact_id": manifest.artifact_id, "n": number}
    return canonical_json(body | {"digest": digest_of(body)})


def read_ref(store: Store, namespace: str, name: str) -> Manifest | None:
    """The artifact a name points at, or None when the name was never given.

    Raises:
        FoundWrong: when the newest reference is torn or altered; the last good one is named.
    """
    keys = store.list(f"_refs/{namespace}/{name}")
    if not keys:
        return None
    good = [key for key in keys if _ref_body(store, key) is not None]
    if not good or good[-1] != keys[-1]:
        last = good[-1] if good else "none"
        raise FoundWrong(f"{keys[-1]}: torn or altered; the last good reference is {last}")
    body = _ref_body(store, keys[-1]) or {}
    found = find_manifest(store, body["kind"], body["artifact_id"])
    if found is None:
        raise FoundWrong(f"{keys[-1]}: names {body['kind']} {body['artifact_id']}, which is gone")
    return found


def _ref_body(store: Store, key: str) -> dict[str, str] | None:
    data = store.get(key) or b""
    try:
        body = dict(json.loads(data))
        del body["digest"]
    except (ValueError, KeyError, TypeError):
        return None
    whole = data == canonical_json(body | {"digest": digest_of(body)})
    return body if whole and key.endswith(f"/{body['n']:08d}.json") else None
