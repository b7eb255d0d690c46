"""What of the evaluation examples can be asked, and of which categories nothing was trained on."""

import pyarrow as pa

from pipelines.scoring.few_shot import NEW, _slices, pool_of
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
