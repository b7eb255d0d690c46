"""Where artifacts live. One seam, `Store`; here its implementation on a folder.

Nothing is visible before it is whole and durable: it is written under a private name in
`_staging/writes`, fsynced, and given its final name, then the directory is fsynced; only after that
is anything acknowledged. A record gets its name by `os.link`, which is put-if-absent (a rename is
not mutual exclusion). A data file, named by its digest and read back first, gets it by a rename,
which is harmless between equal bytes and heals a file that was altered.
"""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from pathlib import Path
from typing import Protocol, runtime_checkable

from pipelines.errors import PipelineError
from storage_schemas.errors import IntegrityError
from storage_schemas.fingerprint import sha256_bytes, sha256_file

__all__ = ["WRITES", "LocalStore", "Store", "open_store", "writer_of"]

WRITES = "writes"
"""Folder in `_staging/` for single files that are being written."""


@runtime_checkable
class Store(Protocol):
    """Small records under keys, data files under their digest."""

    uri: str

    def get(self, key: str) -> bytes | None:
        """The record under `key`, or None."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes a record durably; False when the key exists already."""

    def delete(self, key: str) -> None:
        """Removes a record that may be removed: a receipt that does not hold, a progress file."""

    def list(self, prefix: str) -> list[str]:
        """Keys below `prefix`, sorted."""

    def put_data(self, kind: str, data: bytes, suffix: str) -> tuple[str, str]:
        """Writes bytes as an immutable data file; returns (path, sha256)."""

    def put_file(self, kind: str, file: Path) -> tuple[str, str]:
        """Moves a finished file in as an immutable data file; returns (path, sha256)."""

    def local(self, path: str) -> Path:
        """A local path under which the data file can be opened."""

    def folder(self, key: str) -> Path:
        """A working folder (progress, staging, run logs), created."""


class LocalStore:
    """A store in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)
        try:
            _make_folder(self.root)
        except OSError as error:
            raise PipelineError(f"store {root}: cannot be created ({error.strerror})") from error

    def get(self, key: str) -> bytes | None:
        """The record under `key`, or None."""
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes a record durably; False when the key exists already."""
        target = self.root / key
        _make_folder(target.parent)
        private = self._private()
        try:
            _write_durably(private, data)
            os.link(private, target)
            first = True
        except FileExistsError:
            first = False
        finally:
            private.unlink(missing_ok=True)
        _sync_folder(target.parent)  # also for the one that was faster: it may not have come so far
        return first

    def delete(self, key: str) -> None:
        """Removes a record that may be removed."""
        (self.root / key).unlink(missing_ok=True)

    def list(self, prefix: str) -> list[str]:
        """Keys below `prefix`, sorted; private files are not seen."""
        base = self.root / prefix
        if not base.is_dir():
            return []
        found = (path for path in base.rglob("*") if path.is_file() and path.name[0] != ".")
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def put_data(self, kind: str, data: bytes, suffix: str) -> tuple[str, str]:
        """Writes bytes as an immutable data file; returns (path, sha256)."""
        digest = sha256_bytes(data)
        target = self._data_path(kind, digest, suffix)
        if not _holds(target, digest):
            private = self._private()
            try:
                _write_durably(private, data)
                _admit(private, target, digest)
            finally:
                private.unlink(missing_ok=True)
        return target.relative_to(self.root).as_posix(), digest

    def put_file(self, kind: str, file: Path) -> tuple[str, str]:
        """Moves a finished file in as an immutable data file; returns (path, sha256)."""
        digest = sha256_file(file)
        target = self._data_path(kind, digest, file.suffix)
        if not _holds(target, digest):
            private = self._private()
            try:
                shutil.move(file, private)  # copies where the file lies on another disk
                with private.open("rb") as handle:
                    os.fsync(handle.fileno())
                _admit(private, target, digest)
            finally:
                private.unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        return target.relative_to(self.root).as_posix(), digest

    def local(self, path: str) -> Path:
        """A local path under which the data file can be opened."""
        return self.root / path

    def folder(self, key: str) -> Path:
        """A working folder (progress, staging, run logs), created."""
        path = self.root / key
        _make_folder(path)
        return path

    def _data_path(self, kind: str, digest: str, suffix: str) -> Path:
        target = self.root / kind / "data" / f"{digest}{suffix}"
        _make_folder(target.parent)
        return target

    def _private(self) -> Path:
        """A new name that only this process writes to."""
        folder = self.folder(f"_staging/{WRITES}")
        return folder / f"{os.getpid()}.{uuid.uuid4().hex}.{socket.gethostname()}"


def writer_of(private: Path) -> tuple[str, str]:
    """(host, process id) of whoever writes, or wrote, a private file."""
    pid, _, rest = private.name.partition(".")
    return rest.partition(".")[2], pid


def open_store(uri: str) -> Store:
    """Opens a store by its address.

    Raises:
        PipelineError: for a scheme that this release does not serve.
    """
    if "://" in uri and not uri.startswith("file://"):
        raise PipelineError(f"store {uri}: only folders are served; give a path")
    return LocalStore(Path(uri.removeprefix("file://")))


def _admit(private: Path, target: Path, digest: str) -> None:
    """Verifies what reached the disk, then gives it its final name."""
    if sha256_file(private) != digest:
        raise IntegrityError(f"{target.name}: was not written as computed; check the disk")
    private.replace(target)
    _sync_folder(target.parent)


def _holds(target: Path, digest: str) -> bool:
    return target.exists() and sha256_file(target) == digest


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
