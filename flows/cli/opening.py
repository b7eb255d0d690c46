"""What a command line names, opened: a store, a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.runtime.store import Store

__all__ = ["named_run", "named_store", "use_store", "used_store"]


def use_store(store: str | None) -> None:
    """Makes `--store` the setting, for this process and what it starts."""
    if store is not None:
        os.environ["RACM3_STORE"] = store


def named_store(store: str | None = None) -> Store:
    """The store that a command names, else that of the settings."""
    from flows.settings import Settings
    from pipelines.runtime.store import open_store

    use_store(store)
    return open_store(Settings().store)


def used_store(store: str | None) -> Store:
    """`named_store`, if anything was ever run there.

    Raises:
        UsageError: when nothing was.
    """
    from pipelines.errors import UsageError

    opened = named_store(store)
    if not opened.list("_runs"):
        raise UsageError(
            f"store {opened.uri}: nothing was run here yet; start with: racm3 run smoke"
        )
    return opened


def named_run(name: str, file: str | None, changes: list[str] | None) -> RunConfig:
    """A recipe or file, with a file laid over it, with single keys changed."""
    from flows.recipes import load_run, read_changes

    return load_run(name, file=file, changes=[read_changes(text) for text in changes or []])
