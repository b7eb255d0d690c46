"""Which emoji are trained on, remembered, validated on and evaluated on: seeded, pure.

Two questions need two evaluation sets. *Familiar*: documents held out at random whose relatives
(other tones, genders, the other drawing) are trained on, as in the RA-CM3 paper. *Unseen*: base
concepts held out whole; the memory gets their OpenMoji drawing after training, and the generator
is asked for Twemoji's. Whole categories (Unicode's subgroups) may be held out with them, so that
few-shot classification can ask for classes of which nothing was trained on.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from pipelines.sources.emoji import IMAGE_SIZE, EmojiDocument

Role = Literal["train", "memory", "validation", "evaluation"]


class SourceKind(NamedTuple):
    """What one source is for."""

    role: Role
    """See the roles of a source in `docs/architecture.md`."""
    evaluation_set: str | None
    """`familiar` or `unseen` for evaluation sources, else None."""


SOURCES: dict[str, SourceKind] = {
    "twemoji-train": SourceKind("train", None),
    "openmoji-train": SourceKind("train", None),
    "openmoji-unseen": SourceKind("memory", None),
    "twemoji-validation": SourceKind("validation", None),
    "twemoji-familiar": SourceKind("evaluation", "familiar"),
    "twemoji-unseen": SourceKind("evaluation", "unseen"),
}
"""The six sources, in the order of the ledger."""

LAION_SCHEMA = pa.schema(
    [
        ("URL", pa.string()),
        ("TEXT", pa.string()),
        ("WIDTH", pa.int32()),
        ("HEIGHT", pa.int32()),
        ("similarity", pa.float32()),
        ("punsafe", pa.float32()),
        ("pwatermark", pa.float32()),
        ("group", pa.string()),
        ("concept", pa.string()),
        ("category", pa.string()),
    ]
)
"""laion2B-en's columns, plus ours. Nobody scored the drawings: the three scores are null."""


SMALLEST_CATEGORY = 9
"""Concepts of a category that may be held out: eight demonstrations and one to be told."""


class EmojiSplitConfig(BaseModel):
    """Sizes of the split. Counts are upper bounds where the corpus is smaller."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, description="Draws concepts and documents.")
    familiar: int = Field(default=300, ge=0, description="Twemoji documents held out.")
    validation: int = Field(default=150, ge=0, description="Twemoji documents to stop early by.")
    unseen_share: float = Field(
        default=0.15, ge=0, lt=1, description="Share of the concepts but flags held out whole."
    )
    unseen_flags: int = Field(default=40, ge=0, description="Flag concepts held out whole.")
    unseen_categories: int = Field(
        default=0, ge=0, description="Categories but flags held out whole: classes never seen."
    )
    concepts: int | None = Field(
        default=None, ge=1, description="Concepts but flags used at all; None = all of them."
    )
    flags: int | None = Field(
        default=None, ge=0, description="Flag concepts used at all; None = all of them."
    )
    rows_per_file: int = Field(default=512, ge=1, description="Rows of one Parquet file.")


class EmojiSource(NamedTuple):
    """One source as files on disk."""

    name: str
    """A key of `SOURCES`."""
    role: Role
    """As in `SOURCES`."""
    evaluation_set: str | None
    """As in `SOURCES`."""
    files: tuple[Path, ...]
    """LAION-shaped Parquet files, in order; none for an empty source."""


def split_documents(
    documents: Sequence[EmojiDocument], config: EmojiSplitConfig
) -> dict[str, list[EmojiDocument]]:
    """Deal the documents out to the sources.

    A pure function of the *set* of documents and the config. Laws: the sources are disjoint; they
    cover every document of the concepts that are used; no concept of the unseen sources is in any
    other source; nor is a category that is held out; the OpenMoji twin of every familiar and
    validation document is trained on.

    Args:
        documents: both drawings of every emoji.
        config: sizes and seed.

    Returns:
        Documents by source name (all keys of `SOURCES`), each sorted by (code, drawing).
    """
    flag_concepts = {d.concept for d in documents if d.group == "flags"}
    other_concepts = {d.concept for d in documents} - flag_concepts
    flags = _draw(flag_concepts, config.flags, seed=config.seed, purpose=1)
    others = _draw(other_concepts, config.concepts, seed=config.seed, purpose=2)
    unseen = {
        *_draw(flags, config.unseen_flags, seed=config.seed, purpose=3),
        *_draw(others, round(config.unseen_share * len(others)), seed=config.seed, purpose=4),
    }
    unseen |= _of_unseen_categories([d for d in documents if d.concept in others], config)
    used = sorted((d for d in documents if d.concept in flags | others), key=_order)
    held_out_pool = {d.code for d in used if d.drawing == "twemoji" and d.concept not in unseen}
    count = config.familiar + config.validation
    held_out = _permute(held_out_pool, seed=config.seed, purpose=5)[:count]
    place = dict.fromkeys(held_out[: config.familiar], "twemoji-familiar")
    place |= dict.fromkeys(held_out[config.familiar :], "twemoji-validation")
    sources: dict[str, list[EmojiDocument]] = {name: [] for name in SOURCES}
    for document in used:
        if document.concept in unseen:
            name = f"{document.drawing}-unseen"
        elif document.drawing == "twemoji":
            name = place.get(document.code, "twemoji-train")
        else:
            name = "openmoji-train"
        sources[name].append(document)
    return sources


def _of_unseen_categories(documents: Sequence[EmojiDocument], config: EmojiSplitConfig) -> set[str]:
    """Concepts of the categories that are held out, drawn among those of enough concepts.

    A concept that has a drawing in one of them goes with it, whatever its other drawings are.
    """
    members: dict[str, set[str]] = defaultdict(set)
    for document in documents:
        if document.category is not None:
            members[document.category].add(document.concept)
    large = {name for name, concepts in members.items() if len(concepts) >= SMALLEST_CATEGORY}
    drawn = _draw(large, config.unseen_categories, seed=config.seed, purpose=7)
    return {concept for name in drawn for concept in members[name]}


def write_sources(
    sources: dict[str, list[EmojiDocument]], folder: Path, *, rows_per_file: int
) -> list[EmojiSource]:
    """Write LAION-shaped Parquet files, `<source>-0000.parquet` and on.

    The order of a source's rows is shuffled once (a file in code order would hold one kind of
    emoji); same documents, same bytes. An existing file is replaced as a whole.

    Args:
        sources: what `split_documents` returned.
        folder: where the files go; made when missing.
        rows_per_file: rows of one file, the last one may be shorter.

    Returns:
        The sources in the order of `SOURCES`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, kind in SOURCES.items():
        by_url = {document.url: document for document in sources[name]}
        rows = [by_url[url] for url in _permute(set(by_url), seed=0, purpose=6)]
        files = []
        for number, start in enumerate(range(0, len(rows), rows_per_file)):
            path = folder / f"{name}-{number:04d}.parquet"
            _write_table(laion_table(rows[start : start + rows_per_file]), path)
            files.append(path)
        written.append(EmojiSource(name, kind.role, kind.evaluation_set, tuple(files)))
    return written


def laion_table(documents: Sequence[EmojiDocument]) -> pa.Table:
    """The documents as a table of `LAION_SCHEMA`, in their order."""
    nothing = [None] * len(documents)
    size = [IMAGE_SIZE] * len(documents)
    columns = {
        "URL": [document.url for document in documents],
        "TEXT": [document.caption for document in documents],
        "WIDTH": size,
        "HEIGHT": size,
        "similarity": nothing,
        "punsafe": nothing,
        "pwatermark": nothing,
        "group": [document.group for document in documents],
        "concept": [document.concept for document in documents],
        "category": [document.category for document in documents],
    }
    return pa.Table.from_pydict(columns, schema=LAION_SCHEMA)


def _write_table(table: pa.Table, path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=3)
    os.replace(temporary.name, path)  # noqa: PTH105 - the name is a string


def _order(document: EmojiDocument) -> tuple[str, str]:
    return document.code, document.drawing


def _permute(names: set[str], *, seed: int, purpose: int) -> list[str]:
    """A random order of the names that depends on nothing but the set, seed and purpose."""
    generator = np.random.Generator(np.random.Philox(key=[seed, purpose]))
    ordered = sorted(names)
    return [ordered[int(position)] for position in generator.permutation(len(ordered))]


def _draw(names: set[str], count: int | None, *, seed: int, purpose: int) -> set[str]:
    """That many of the names at random; all when None or too few."""
    return set(_permute(names, seed=seed, purpose=purpose)[:count])
