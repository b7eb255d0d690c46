from __future__ import annotations

import pytest

from pipelines.errors import UsageError
from pipelines.models import load_text_tokenizer
from pipelines.runtime.reader import Selection
from pipelines.stages.train_text_tokenizer import Config, TrainTextTokenizer


def test_the_tokenizer_reads_what_it_learnt(shared, documents, text_tokenizer):
    tokenizer = load_text_tokenizer(shared.reader.files(Selection.of(text_tokenizer)))
    captions = [row["caption"] for row in shared.rows(documents) if row["role"] == "train"]
    assert all(tokenizer.decode(tokenizer.encode(caption)) == caption for caption in captions)
    assert text_tokenizer.facts["vocab_size"] == tokenizer.vocab_size == 270
    assert text_tokenizer.rows_in == text_tokenizer.rows_out == 48


def test_the_order_of_shards_does_not_matter(world, document_rows):
    def fit(*order: int):
        parts = [
            (document_rows("a", "train", shift=0), {"source": "a", "role": "train"}),
            (document_rows("b", "train", shift=2), {"source": "b", "role": "train"}),
        ]
        made = world.publish("documents", [parts[i] for i in order])
        return world.run(TrainTextTokenizer(), Config(vocab_size=280), documents=made)

    assert fit(0, 1).content_digest == fit(1, 0).content_digest


def test_no_document_is_an_error_in_a_sentence(world, documents):
    none = Selection(manifest=documents, shards=())
    with pytest.raises(UsageError, match="no document is selected"):
        world.run(TrainTextTokenizer(), Config(), documents=none)
