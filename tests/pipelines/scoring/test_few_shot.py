"""What of the evaluation examples can be asked, and of which categories nothing was trained on."""

import pyarrow as pa

from pipelines.scoring.few_shot import NEW, _slices, pool_of, shown_by_memory
from storage_schemas.tables import TABLES


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

    def groups(*trained):
        pool = pool_of([asked], examples([(name, None, name, name) for name in trained]))
        return {where.group: {m.category for m in members} for where, members in _slices(pool)}

    assert groups("a", "z") == {"": set("abcd"), NEW: set("bcd")}
    assert groups("a", "b", "c") == {"": set("abcd")}, "one new category is no choice"
    assert groups("a", "b", "c", "d") == {"": set("abcd")}


def test_what_the_memory_holds_of_the_same_concept_and_caption_demonstrates():
    asked = [(name, "familiar", "x", f"c{name}") for name in "abcdef"]
    pool = pool_of([examples(asked)], examples([]))
    columns = ("document_id", "concept", "caption", "role", "outcome")
    held = [
        *((name, f"c{name}", f"a {name}", "evaluation", "kept") for name in "abcdef"),
        ("m2", "ca", "a a", "train", "kept"),
        ("m1", "ca", "a a", "memory", "kept"),  # the first by id stands in
        ("m0", "cb", "a b, dark", "train", "kept"),  # another caption
        ("m3", "cc", "a c", "train", "duplicate"),  # is in no memory
        ("m4", "cd", "a d", "validation", "kept"),  # neither is this
        ("m5", "ce", "a f", "train", "kept"),  # the caption of another concept
        ("m6", "cf", "a f", "train", "kept"),
    ]
    documents = pa.table(dict(zip(columns, map(list, zip(*held, strict=True)), strict=True)))
    codes = pa.table({"document_id": [f"m{i}" for i in range(7)], "codes": [[i] for i in range(7)]})
    shown = shown_by_memory(pool, documents, codes)
    assert [m.document_id for m in shown.members["familiar"]] == ["a", "f"]
    assert shown.stand_ins == {"a": "m1", "f": "m6"}
    assert (shown.codes_shown("a"), shown.codes_shown("f")) == ((1,), (6,))
    assert shown.codes["a"] == pool.codes["a"] == pool.codes_shown("a"), "asked as it is"
    assert shown.trained == pool.trained
