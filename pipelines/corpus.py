"""The sources of a run: which Parquet files it names, and the demo corpus made on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelines.config import RunConfig, SourceConfig
from pipelines.errors import UsageError
from pipelines.runtime.ledger import NewSource, add_sources, as_selection, read_ledger
from pipelines.runtime.reader import Selection
from pipelines.runtime.store import Store
from pipelines.sources.emoji import EMOJI_HOST, prepare_corpus
from pipelines.sources.emoji_splits import EmojiSplitConfig, split_documents, write_sources
from pipelines.sources.image_host import serve_images
from storage_schemas.fingerprint import digest_of, sha256_file

__all__ = ["Corpus", "image_host", "known_sources", "prepare_sources", "register"]

DEMO_AS_OF = "2026-01-01"
"""The drawings do not change: they were fetched, as it were, on one day for ever."""

_LISTING = 2
"""Version of `sources.json`."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """What a run reads, before anything is read."""

    sources: tuple[NewSource, ...]
    images: Path | None
    """Folder that the image host serves; None where the run has no demo corpus."""


def prepare_sources(config: RunConfig, cache: Path, *, progress: Progress | None = None) -> Corpus:
    """Makes the demo corpus, when the run has one, and finds the files that the run names.

    Raises:
        UsageError: when a source names no file, or one that is not there, or the extra `demo` is
            not installed.
    """
    if nameless := [source.name for source in config.sources if not source.paths]:
        raise UsageError(
            f"{config.namespace}: give the files of {' and '.join(nameless)}, by --set sources=... "
            "or in a file that extends the recipe (docs/your-own-data.md)"
        )
    found: list[NewSource] = []
    images = None
    if config.corpus is not None:
        try:
            drawings = prepare_corpus(cache, progress=progress)
        except ValueError as error:
            raise UsageError(str(error)) from error
        images = drawings.folder
        folder = _split_folder(config.corpus, drawings.folder)
        listing = folder / "sources.json"
        if not listing.is_file():
            parts = split_documents(drawings.documents, config.corpus)
            written = write_sources(parts, folder, rows_per_file=config.corpus.rows_per_file)
            rows = [
                [_drawing(source.name), source.role, source.evaluation_set, file.name]
                for source in written
                for file in source.files
            ]
            private = folder / ".sources.tmp"
            private.write_text(json.dumps(rows), encoding="utf-8")
            private.replace(listing)
        found += _listed(folder)
    found += [new for source in config.sources for new in _files(source)]
    return Corpus(sources=tuple(found), images=images)


def register(store: Store, config: RunConfig, corpus: Corpus) -> Selection:
    """Appends to the ledger what it does not hold yet; returns the run's entries, in order."""
    return as_selection(add_sources(store, config.namespace, corpus.sources))


def known_sources(store: Store, config: RunConfig, cache: Path) -> Selection | None:
    """The run's ledger entries when all of its files are there and known; writes nothing."""
    if not all(source.paths for source in config.sources):
        return None
    found: list[NewSource] = []
    if config.corpus is not None:
        folders = [
            _split_folder(config.corpus, folder)
            for folder in sorted(cache.glob("emoji-*"))
            if (folder / "documents.json").is_file()
        ]
        ready = [folder for folder in folders if (folder / "sources.json").is_file()]
        if not ready:
            return None
        found += _listed(ready[-1])
    found += [new for source in config.sources for new in _files(source)]
    known = {(entry.source, entry.sha256): entry for entry in read_ledger(store, config.namespace)}
    entries = [known.get((new.source, sha256_file(new.path))) for new in found]
    if not entries or any(entry is None for entry in entries):
        return None
    return as_selection(sorted((e for e in entries if e is not None), key=lambda entry: entry.n))


@contextmanager
def image_host(corpus: Corpus) -> Iterator[dict[str, str]]:
    """Serves the demo's drawings while the block runs.

    Yields:
        host name of the demo's URLs -> address:port; empty where there is no demo corpus.
    """
    if corpus.images is None:
        yield {}
        return
    with serve_images(corpus.images) as host:
        yield {EMOJI_HOST: host.netloc}


def _drawing(name: str) -> str:
    """`openmoji` of `openmoji-unseen`: a source is who drew it, whatever the drawings are used for.

    So `max_per_source = 1` gives one context of each hand, in every memory.
    """
    return name.partition("-")[0]


def _split_folder(config: EmojiSplitConfig, drawings: Path) -> Path:
    name = digest_of([_LISTING, config.model_dump(mode="json"), drawings.name])[:16]
    return drawings.parent / "splits" / name


def _listed(folder: Path) -> list[NewSource]:
    rows = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
    return [
        NewSource(source=name, path=folder / file, role=role, set=where, as_of=DEMO_AS_OF)
        for name, role, where, file in rows
    ]


def _matches(pattern: Path) -> list[Path]:
    """The file of that name, or those that match it as a pattern, in order."""
    if pattern.exists():
        return [pattern]
    anchor = pattern.anchor or "."
    return sorted(Path(anchor).glob(str(pattern.relative_to(pattern.anchor or "."))))


def _files(source: SourceConfig) -> list[NewSource]:
    found = []
    for pattern in source.paths:
        paths = _matches(Path(pattern))
        if not paths:
            raise UsageError(
                f"source {source.name}: no file matches {pattern}; correct `paths` in the run file"
            )
        found += [
            NewSource(
                source=source.name,
                path=path.absolute(),
                role=source.role,
                set=source.set,
                as_of=source.as_of or datetime.now(UTC).date().isoformat(),
            )
            for path in paths
        ]
    return found
