from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.encoder import EncoderTokenizer

TOKENIZER = EncoderTokenizer.train(["a red cat", "red cats"] * 3, vocab_size=280)


@given(st.text(st.characters(exclude_categories=()), max_size=80))
def test_the_end_is_always_the_highest_id(caption):
    (ids,) = TOKENIZER([caption], context_length=16).tolist()
    end = ids.index(TOKENIZER.end_id)
    assert ids.count(TOKENIZER.end_id) == 1
    assert all(0 < i < TOKENIZER.end_id for i in ids[:end])
    assert all(i == 0 for i in ids[end + 1 :])


def test_json_round_trip_case_and_determinism():
    again = EncoderTokenizer.from_json(TOKENIZER.to_json())
    texts = ["Red CAT!", "red cat!"]
    ids = again(texts, context_length=8)
    assert (ids == TOKENIZER(texts, context_length=8)).all()
    assert (ids[0] == ids[1]).all()
    twin = EncoderTokenizer.train(["a red cat", "red cats"] * 3, vocab_size=280)
    assert twin.to_json() == TOKENIZER.to_json()
    assert TOKENIZER.vocab_size <= 280


def test_refusals():
    with pytest.raises(ValueError, match="258"):
        EncoderTokenizer.train(["a"], vocab_size=257)
    with pytest.raises(ValueError, match="cannot be read"):
        EncoderTokenizer.from_json("{}")
