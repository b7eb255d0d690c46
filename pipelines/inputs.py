"""How the steps of a run choose their inputs from what earlier steps made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from pipelines.config import RunConfig
from pipelines.runtime.reader import Selection
from storage_schemas.manifest import Manifest

__all__ = ["fit_selection", "selected", "whole"]

Inputs = Mapping[str, Selection]
Choose = Callable[[Mapping[str, Manifest]], Inputs]


def whole(**needs: str) -> Choose:
    """Inputs that are whole artifacts, by the label of the step that makes each."""
    return lambda made: {name: Selection.of(made[label]) for name, label in needs.items()}


def selected(name: str, label: str, **tags: Iterable[str]) -> Choose:
    """One input: the shards of an artifact whose tags are among those given."""
    return lambda made: {name: Selection.of(made[label], **tags)}


def fit_selection(config: RunConfig, documents: Manifest) -> Selection:
    """What encoder and tokenizers are fitted on: role train, as the run narrows it."""
    chosen = Selection.of(documents, role={"train"})
    names, files = config.fit_sources, config.fit_files
    shards = [s for s in chosen.shards if names is None or s.tags["source"] in names]
    if files is not None:
        orders: dict[str, set[str]] = {}
        for shard in shards:
            orders.setdefault(shard.tags["source"], set()).add(shard.tags["order"])
        first = {name: set(sorted(found)[:files]) for name, found in orders.items()}
        shards = [s for s in shards if s.tags["order"] in first[s.tags["source"]]]
    return Selection(manifest=documents, shards=tuple(shards))
