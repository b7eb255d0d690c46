"""What of the evaluation examples can be asked, and what demonstrates."""

import pyarrow as pa

from pipelines.scoring.few_shot_pool import pool_of, shown_by_others
from racm3.metrics.few_shot import Member
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
