"""What can be wrong with stored data.

StorageError
├── SchemaError       a table does not have the declared columns, types, key or order
├── IntegrityError    stored bytes are not the bytes that were published
└── ManifestError     a manifest, receipt, reference or ledger entry cannot be believed
"""

from __future__ import annotations

__all__ = ["IntegrityError", "ManifestError", "SchemaError", "StorageError"]


class StorageError(Exception):
    """Root of what this package raises; the message names the file or table and the remedy."""


class SchemaError(StorageError):
    """A table does not match its declared schema."""


class IntegrityError(StorageError):
    """Stored bytes differ from what was published."""


class ManifestError(StorageError):
    """A small JSON record (manifest, receipt, reference, ledger entry) cannot be believed."""
