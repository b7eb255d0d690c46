"""What of the evaluation examples can be asked, and of which categories nothing was trained on."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from pipelines.scoring.few_shot import (
    NEW,
    FewShotConfig,
    _by_channel,
    _slices,
    pool_of,
    shown_by_others,
)
from racm3.metrics.few_shot import Member
from racm3.sampling.channel import image_log_likelihoods, mixture, shares
from storage_schemas.tables import TABLES
from tests.racm3.sampling.test_classify import LABELS, LAYOUT, questions, random_generator


def examples(rows):
    schema = TABLES["examples"].arrow
    return pa.Table.from_pylist(
        [
            dict(zip(("document_id", "set", "category", "concept"), row, strict=True))
            for row in rows
        ],
        schema=schema,
    ).set_column(
        schema.get_field_index("image_tokens"), "image_tokens", pa.array([[len(rows)]] * len(rows))
    )


def test_documents_of_all_memories_count_once_and_only_with_a_category():
    one = [("a", "unseen", "x", "c1"), ("b", "unseen", None, "c2"), ("d", "familiar", "y", None)]
    pool = pool_of([examples(one), examples(one[:1])], examples([("t", None, None, None)]))
    assert sorted(pool.members) == ["familiar", "unseen"]
    assert [m.document_id for m in pool.members["unseen"]] == ["a"]
    assert pool.members["familiar"][0].concept == "d", "without a concept it is its own"
    assert set(pool.codes) == {"a", "d"}
    assert pool.trained == frozenset()


def test_categories_without_training_documents_have_a_slice_of_their_own():
    asked = examples([(name, "unseen", name, name) for name in "abcd"])

    def groups(*trained, **config):
        pool = pool_of([asked], examples([(name, None, name, name) for name in trained]))
        found = _slices(pool, FewShotConfig(**config))
        return {where.group: {m.category for m in members} for where, members in found}

    assert groups("a", "z") == {"": set("abcd"), NEW: set("bcd")}
    assert groups("a", "b", "c") == {"": set("abcd")}, "one new category is no choice"
    assert groups("a", "b", "c", "d") == {"": set("abcd")}
    assert groups("a", "z", categories="new") == {NEW: set("bcd")}
    assert groups("a", "b", "c", categories="new") == {}


def test_others_of_the_memory_demonstrate():
    asked = [(name, "familiar", "x", f"c{name}") for name in "ab"]
    pool = pool_of([examples(asked)], examples([]))
    columns = ("document_id", "source", "role", "category", "concept", "outcome")
    held = [
        ("a", "ours", "evaluation", "x", "ca", "kept"),
        ("b", "ours too", "evaluation", "x", "cb", "kept"),
        ("m0", "theirs", "train", "x", "c0", "kept"),
        ("m1", "theirs", "memory", "y", None, "kept"),  # its own concept
        ("m2", "ours", "train", "x", "c2", "kept"),  # by whoever made what is asked
        ("m3", "ours too", "memory", "x", "c3", "kept"),
        ("m4", "theirs", "train", "x", "c4", "duplicate"),  # is in no memory
        ("m5", "theirs", "validation", "x", "c5", "kept"),  # neither is this
        ("m6", "theirs", "train", None, "c6", "kept"),  # of no category
    ]
    documents = pa.table(dict(zip(columns, map(list, zip(*held, strict=True)), strict=True)))
    codes = pa.table({"document_id": [f"m{i}" for i in range(7)], "codes": [[i] for i in range(7)]})
    shown = shown_by_others(pool, documents, codes)
    assert shown.shown == (
        Member(document_id="m0", category="x", concept="c0"),
        Member(document_id="m1", category="y", concept="m1"),
    )
    assert shown.codes == {**pool.codes, "m0": (0,), "m1": (1,)}
    assert (shown.members, shown.trained) == (pool.members, pool.trained)


def test_a_sequence_holds_as_many_demonstrations_as_k_and_the_setting_allow():
    model, asked = random_generator(), questions(5, k=8)
    contender = SimpleNamespace(generator=SimpleNamespace(model=model, layout=LAYOUT))

    def by_hand(k, together, pool):
        first = [replace(one, demonstrations=one.demonstrations[:k]) for one in asked]
        likely = image_log_likelihoods(model, LAYOUT, first, LABELS, together=together)
        return np.stack([pool(one) for one in likely])

    for together, pooling, pool in (
        (1, "mixture", lambda one: mixture(one, len(one))),
        (2, "average", lambda one: shares(one).mean(axis=0)),
        (3, "average", lambda one: shares(one).mean(axis=0)),
    ):
        config = FewShotConfig(together=together, pooling=pooling, all_labels=False)
        found = _by_channel(contender, asked, LABELS, (1, 2, 6), config, lambda *_: None)
        assert sorted(found) == [1, 2, 6]
        for k, told in found.items():
            assert told == pytest.approx(by_hand(k, min(k, together), pool), rel=1e-3), (k, pooling)
