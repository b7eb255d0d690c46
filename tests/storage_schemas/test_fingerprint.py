"""Names by content: equal values have equal names, different ones do not."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_schemas.fingerprint import canonical_json, digest_of, sha256_bytes, sha256_file
from storage_schemas.ids import document_id, example_id, generation_id, row_id

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(value=JSON)
def test_canonical_json_is_a_fixed_point(value):
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data


@given(value=st.dictionaries(st.text(), st.integers(), max_size=5))
def test_order_of_keys_does_not_matter(value):
    assert digest_of(dict(reversed(value.items()))) == digest_of(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_that_is_none(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json([value])


def test_files_and_bytes_agree(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x" * (3 << 20))
    assert sha256_file(path) == sha256_bytes(path.read_bytes())
    assert sha256_bytes(b"") == hashlib.sha256().hexdigest()


def test_ids_differ_where_their_parts_do():
    base = {"model": "m", "task": "image", "prompt": "p", "contexts": ["a", "b"]}
    base |= {"sampler": "s", "seed": 1}
    first = generation_id(**base)
    assert generation_id(**base) == first
    for change in ({"contexts": ["b", "a"]}, {"seed": 2}, {"task": "caption"}, {"model": "n"}):
        assert generation_id(**(base | change)) != first
    ids = {row_id("f", 1), row_id("f", 11), document_id("a", "b"), document_id("b", "a")}
    ids |= {example_id("a", "b"), example_id("b", "a")}
    assert len(ids) == 6
