from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.text_tokenizer import TextTokenizer

CAPTIONS = [
    f"{adjective} {noun} with {other}"
    for adjective in ("red", "grinning", "waving", "small")
    for noun in ("face", "flag", "hand", "cat")
    for other in ("hearts", "tears", "stars")
]
TOKENIZER = TextTokenizer.train(CAPTIONS, vocab_size=320)
TRAIN = "import sys; from racm3.text_tokenizer import TextTokenizer as T; " + (
    "print(T.train(sys.argv[1:], vocab_size=320).to_json())"
)


@given(st.text())
def test_decoding_gives_back_any_text(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= i < TOKENIZER.vocab_size for i in ids)


@given(st.text())
def test_byte_lengths_add_up_to_the_text(text):
    ids = TOKENIZER.encode(text)
    lengths = TOKENIZER.byte_lengths(ids)
    assert len(lengths) == len(ids)
    assert sum(lengths) == len(text.encode("utf-8"))
    assert all(lengths)


@pytest.mark.parametrize("wrong", [-1, TOKENIZER.vocab_size])
def test_byte_lengths_of_no_token_are_refused(wrong):
    with pytest.raises(ValueError, match="is not a text token"):
        TOKENIZER.byte_lengths([0, wrong])


@given(st.text(alphabet=st.characters(codec=None, categories=["Cs", "Ll", "So"])))
def test_lone_surrogates_become_replacement_characters(text):
    decoded = TOKENIZER.decode(TOKENIZER.encode(text))
    decoded.encode("utf-8")
    if not any(0xD800 <= ord(c) < 0xE000 for c in text):
        assert decoded == text


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)))
def test_any_tokens_decode(ids):
    TOKENIZER.decode(ids).encode("utf-8")


def test_merges_shorten_what_was_learned():
    assert len(TOKENIZER.encode("red flag with stars")) < 10
    assert 256 < TOKENIZER.vocab_size <= 320


def test_special_tokens_cannot_be_spelled():
    for spelled in ("</s>", "<sentinel:0>", "<break>", "<pad>"):
        assert len(TOKENIZER.encode(spelled)) > 1


def test_same_captions_in_any_order_give_the_same_tokenizer():
    shuffled = CAPTIONS.copy()
    random.Random(1).shuffle(shuffled)
    assert TextTokenizer.train(shuffled, vocab_size=320).to_json() == TOKENIZER.to_json()


def test_another_process_gives_the_same_tokenizer():
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3"}
    command = [sys.executable, "-c", TRAIN, *CAPTIONS]
    output = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    assert output.stdout.strip() == TOKENIZER.to_json()


def test_json_round_trip():
    again = TextTokenizer.from_json(TOKENIZER.to_json())
    assert again.to_json() == TOKENIZER.to_json()
    assert again.encode(CAPTIONS[5]) == TOKENIZER.encode(CAPTIONS[5])


def test_no_captions_give_a_byte_tokenizer():
    tokenizer = TextTokenizer.train([], vocab_size=300)
    assert tokenizer.vocab_size == 256
    assert tokenizer.decode(tokenizer.encode("ä😀")) == "ä😀"


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="256"):
        TextTokenizer.train(CAPTIONS, vocab_size=100)
    with pytest.raises(ValueError, match="JSON"):
        TextTokenizer.from_json("{}")
    with pytest.raises(ValueError, match="not a text token"):
        TOKENIZER.decode([TOKENIZER.vocab_size])
