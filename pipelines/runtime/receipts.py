"""Receipts: which shards are done. Believed by digest, never by existence."""

from __future__ import annotations

import logging

from pipelines.runtime.store import Store
from storage_schemas.errors import ManifestError
from storage_schemas.fingerprint import sha256_file
from storage_schemas.manifest import Receipt

__all__ = ["read_receipt", "write_receipt"]

_log = logging.getLogger(__name__)


def _key(stage: str, shard_key: str) -> str:
    return f"_receipts/{stage}/{shard_key}.json"


def read_receipt(store: Store, stage: str, shard_key: str) -> Receipt | None:
    """The receipt of a shard, when it and every file it names can be believed.

    A torn or altered one, or one whose file is gone or changed, is removed: the shard is redone.
    """
    key = _key(stage, shard_key)
    data = store.get(key)
    if data is None:
        return None
    try:
        receipt = Receipt.from_json(data, name=key)
    except ManifestError as error:
        _log.warning("%s; the shard is done again", error)
        store.delete(key)
        return None
    if (receipt.stage, receipt.shard_key) == (stage, shard_key) and all(
        _present(store, s.path, s.sha256) for s in receipt.shards
    ):
        return receipt
    _log.warning("%s: a file it names is missing or altered; the shard is done again", key)
    store.delete(key)
    return None


def write_receipt(store: Store, receipt: Receipt) -> Receipt:
    """Acknowledges a shard; returns the receipt that holds: the first one that can be believed."""
    key = _key(receipt.stage, receipt.shard_key)
    while not store.put_if_absent(key, receipt.to_json()):
        earlier = read_receipt(store, receipt.stage, receipt.shard_key)
        if earlier is not None:
            return earlier
    return receipt


def _present(store: Store, path: str, sha256: str) -> bool:
    local = store.local(path)
    return local.exists() and sha256_file(local) == sha256
