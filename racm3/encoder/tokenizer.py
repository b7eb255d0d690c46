"""Captions to the ids of a small open_clip text tower.

Byte-level BPE over lower-cased text, learnt from the captions the encoder is fitted on: a few
hundred pieces, so that the embedding stays small and an unseen word is spelt out of seen pieces.
open_clip pools a caption at the highest id in it, so the end token is the last id of all; 0 pads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

_BYTES = 256
_EXTRA = 2
"""Padding and end."""


class EncoderTokenizer:
    """BPE ids shifted by one (0 pads), with the end token on top."""

    def __init__(self, bpe: Tokenizer) -> None:
        self._bpe = bpe
        self.vocab_size: int = bpe.get_vocab_size() + _EXTRA
        """Ids in all: what `text_cfg.vocab_size` must be."""
        self.end_id: int = self.vocab_size - 1

    @classmethod
    def train(cls, captions: Iterable[str], *, vocab_size: int) -> EncoderTokenizer:
        """Learns the pieces; the same captions in the same order give the same tokenizer.

        Args:
            captions: Any text; surrogates that UTF-8 cannot hold are replaced.
            vocab_size: At most this many ids, padding and end included; at least 258.

        Raises:
            ValueError: `vocab_size` is too small for all bytes.
        """
        if vocab_size < _BYTES + _EXTRA:
            raise ValueError(
                f"vocab_size is {vocab_size}: an encoder's tokenizer needs at least "
                f"{_BYTES + _EXTRA} (every byte, padding, end)."
            )
        bpe = Tokenizer(models.BPE())
        bpe.normalizer = normalizers.Lowercase()
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - _EXTRA,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator((_clean(caption) for caption in captions), trainer)
        return cls(bpe)

    def __call__(self, captions: Sequence[str], *, context_length: int) -> Tensor:
        """Captions to int64 [B, context_length]; the end token is always there, tails are cut."""
        ids = torch.zeros(len(captions), context_length, dtype=torch.int64)
        for row, caption in enumerate(captions):
            pieces = self._bpe.encode(_clean(caption)).ids[: context_length - 1]
            ids[row, : len(pieces)] = torch.tensor(pieces, dtype=torch.int64) + 1
            ids[row, len(pieces)] = self.end_id
        return ids

    def to_json(self) -> str:
        """The whole tokenizer as one JSON text (of Hugging Face `tokenizers`)."""
        return str(self._bpe.to_str())

    @classmethod
    def from_json(cls, text: str) -> EncoderTokenizer:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: The text is no tokenizer.
        """
        try:
            return cls(Tokenizer.from_str(text))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"The encoder's tokenizer cannot be read ({error}): give the JSON that "
                "EncoderTokenizer.to_json wrote."
            ) from error


def _clean(caption: str) -> str:
    return caption.encode("utf-8", "replace").decode("utf-8")
