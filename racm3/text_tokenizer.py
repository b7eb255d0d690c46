"""Byte-level BPE for captions, on Hugging Face `tokenizers`.

No special tokens, no normalisation: every text is bytes, so nothing is out of vocabulary, a caption
that spells `</s>` stays text, and decoding gives back what was encoded. RA-CM3's own tokenizer is a
unigram model of about 56,320 entries; byte-level BPE is what can be trained in a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Self

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_BYTES = 256


class TextTokenizer:
    """Captions to tokens 0..vocab_size-1 and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wraps a tokenizer made by `train` or `from_json`."""
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, captions: Iterable[str], *, vocab_size: int) -> Self:
        """Learns merges; the same captions, in any order, give the same tokenizer.

        Args:
            captions: texts to learn from; each is looked at once.
            vocab_size: most entries, the 256 bytes among them; few captions give fewer.

        Raises:
            ValueError: when `vocab_size` cannot hold the bytes.
        """
        if vocab_size < _BYTES:
            raise ValueError(f"vocab_size must be at least {_BYTES} (one a byte), not {vocab_size}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(map(_encodable, captions), trainer=trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: when the text is not a tokenizer of this kind.
        """
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"not a text tokenizer's JSON: {error}") from error
        if tokenizer.get_vocab_size() < _BYTES or tokenizer.get_added_tokens_decoder():
            raise ValueError("not a byte-level text tokenizer without special tokens")
        return cls(tokenizer)

    def to_json(self) -> str:
        """All there is to know, as JSON; the same tokenizer gives the same text."""
        content = json.loads(self._tokenizer.to_str())
        return json.dumps(content, ensure_ascii=True, separators=(",", ":"), sort_keys=True)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, at least 256."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; never raises. A lone surrogate, which is no text, becomes U+FFFD."""
        return list(self._tokenizer.encode(_encodable(text)).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: when an id is not 0..vocab_size-1.
        """
        self._check(ids)
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def byte_lengths(self, ids: Sequence[int]) -> list[int]:
        """How many UTF-8 bytes each token spells; a token may end within a character.

        Raises:
            ValueError: when an id is not 0..vocab_size-1.
        """
        self._check(ids)
        # the alphabet of byte-level tokens has one character a byte
        return [len(self._tokenizer.id_to_token(int(i)) or "") for i in ids]

    def _check(self, ids: Sequence[int]) -> None:
        wrong = [i for i in ids if not 0 <= i < self.vocab_size]
        if wrong:
            raise ValueError(f"{wrong[0]} is not a text token: they are 0..{self.vocab_size - 1}")


def _encodable(text: str) -> str:
    """The text with lone surrogates replaced: what UTF-8 can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
