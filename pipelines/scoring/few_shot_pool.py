"""What few-shot classification can ask, and what it can show.

What is shown is of the evaluation set, as what is asked, or it comes out of the memory and from
other sources: drawn or photographed by others, as the contexts are that a generator learns to read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.records import KEPT, MEMORY_ROLES
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import Inputs
from racm3.metrics.few_shot import Member

__all__ = ["Demonstrations", "Pool", "pool_of", "read_pool", "shown_by_others"]

Demonstrations = Literal["set", "others"]
"""Documents of the set that is asked about, or of the memory and from other sources."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Evaluation documents that have a category."""

    members: Mapping[str, Sequence[Member]]
    """By evaluation set."""
    codes: Mapping[str, tuple[int, ...]]
    """By document id."""
    trained: Set[str]
    """Categories of training documents."""
    shown: Sequence[Member] | None = None
    """What demonstrates; None: the other members of the set."""


def pool_of(evaluation: Iterable[pa.Table], train: pa.Table) -> Pool:
    """What can be asked and shown.

    Args:
        evaluation: `examples` of role evaluation; a document may be in several tables.
        train: `examples` of role train.
    """
    members: dict[str, dict[str, Member]] = {}
    codes: dict[str, tuple[int, ...]] = {}
    columns = ["document_id", "set", "category", "concept", "image_tokens"]
    for table in evaluation:
        for row in table.select(columns).to_pylist():
            if row["category"] is None:
                continue
            name = row["document_id"]
            codes[name] = tuple(row["image_tokens"])
            members.setdefault(row["set"] or "", {})[name] = _member(row)
    trained = {name for name in train.column("category").to_pylist() if name is not None}
    return Pool(
        members={name: tuple(found.values()) for name, found in sorted(members.items())},
        codes=codes,
        trained=frozenset(trained),
    )


def shown_by_others(pool: Pool, documents: pa.Table, image_tokens: pa.Table) -> Pool:
    """The same asked; what a memory may hold and comes from other sources demonstrates.

    Args:
        pool: As of `pool_of`.
        documents: All, with `document_id`, `source`, `role`, `category`, `concept` and `outcome`.
        image_tokens: `document_id` and `codes` of what a memory may hold at least.
    """
    asked = pa.array(sorted(pool.codes), pa.string())
    sources = pc.unique(documents.filter(pc.is_in(documents["document_id"], asked))["source"])
    others = documents.filter(pc.invert(pc.is_in(documents["source"], sources)))
    kept = others.filter(pc.equal(others["outcome"], KEPT))
    held = kept.filter(pc.is_in(kept["role"], pa.array(MEMORY_ROLES)))
    shown = tuple(map(_member, held.filter(pc.is_valid(held["category"])).to_pylist()))
    wanted = pa.array(sorted(one.document_id for one in shown), pa.string())
    rows = image_tokens.filter(pc.is_in(image_tokens["document_id"], wanted)).to_pylist()
    codes = {row["document_id"]: tuple(row["codes"]) for row in rows}
    return replace(pool, codes={**codes, **pool.codes}, shown=shown)


def read_pool(inputs: Inputs, reader: Reader, demonstrations: Demonstrations) -> Pool:
    """The pool of a stage that scores; evaluation documents of every memory are asked about.

    Args:
        inputs: `examples.<memory>` and `train`; for demonstrations by others `documents` and
            `image_tokens` too.
        reader: Of their store.
        demonstrations: Where they come from.
    """

    def examples(name: str) -> pa.Table:
        return reader.tables(inputs[name].tables("examples"))

    asked = sorted(name for name in inputs if name.startswith("examples."))
    pool = pool_of(map(examples, asked), examples("train"))
    if demonstrations == "set":
        return pool
    columns = ["document_id", "source", "role", "category", "concept", "outcome"]
    documents = reader.tables(inputs["documents"].tables("documents"), columns)
    shards = inputs["image_tokens"].tables("image_tokens")
    return shown_by_others(pool, documents, reader.tables(shards, ["document_id", "codes"]))


def _member(row: Mapping[str, Any]) -> Member:
    name = row["document_id"]
    return Member(document_id=name, category=row["category"], concept=row["concept"] or name)
