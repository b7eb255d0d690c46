from __future__ import annotations

import numpy as np
import pytest

from racm3.document import DocumentTokens
from racm3.sequence.batch import Modality
from racm3.sequence.layout import Layout, lay_out
from racm3.vocabulary import Vocabulary

VOCABULARY = Vocabulary(10, 4, num_sentinels=2)
LAYOUT = Layout(vocabulary=VOCABULARY, image_tokens=2, max_text_tokens=3)
MAIN = DocumentTokens(text=(1, 2), image=(0, 3))
CONTEXT = DocumentTokens(text=(9, 8, 7, 6), image=(1, 1))
EMPTY = DocumentTokens(text=(), image=(2, 2))


def written(ids):
    names = []
    for i in ids.tolist():
        if i in VOCABULARY.text_range:
            names.append(f"t{VOCABULARY.from_text_id(i)}")
        elif i in VOCABULARY.image_range:
            names.append(f"i{VOCABULARY.from_image_id(i)}")
        else:
            names.append(VOCABULARY.special_name(i))
    return " ".join(names)


def test_contexts_then_main_with_breaks():
    sequence = lay_out(MAIN, [CONTEXT, EMPTY], LAYOUT)
    assert written(sequence.ids) == (
        "</s> t9 t8 t7 <break> i1 i1 <break> <break> i2 i2 <break> t1 t2 <break> i0 i3 </s>"
    )
    assert sequence.cut_text_tokens == 1
    assert sequence.num_contexts == 2


def test_contexts_stand_in_the_order_given_and_the_main_document_last(cases):
    for rng in cases:
        documents = [
            DocumentTokens(
                text=tuple(rng.integers(0, 10, rng.integers(0, 6)).tolist()),
                image=tuple(rng.integers(0, 4, 2).tolist()),
            )
            for _ in range(rng.integers(1, 6))
        ]
        main, contexts = documents[-1], documents[:-1]
        sequence = lay_out(main, contexts, LAYOUT)
        names = written(sequence.ids).split(" ")
        expected = ["</s>"]
        for document in documents:
            expected += [f"t{t}" for t in document.text[:3]] + ["<break>"]
            expected += [f"i{c}" for c in document.image] + ["<break>"]
        assert names == [*expected[:-1], "</s>"]
        lengths = [LAYOUT.document_length(document) for document in documents]
        lengths[0] += 1
        assert sequence.documents.tolist() == np.repeat(range(len(lengths)), lengths).tolist()
        assert sequence.is_main.sum() == lengths[-1]
        assert sequence.cut_text_tokens == sum(max(0, len(d.text) - 3) for d in documents)


def test_a_separator_belongs_to_what_it_closes():
    sequence = lay_out(MAIN, [CONTEXT], LAYOUT)
    assert sequence.documents.tolist() == [0] * 8 + [1] * 6
    assert sequence.segment_of.tolist() == [0] * 5 + [1] * 3 + [2] * 3 + [3] * 3
    assert sequence.is_main.tolist() == [False] * 8 + [True] * 6
    assert np.allclose(sequence.weights(0.1), [0.1] * 8 + [1.0] * 6)


def test_segments_hold_their_tokens():
    sequence = lay_out(MAIN, [CONTEXT], LAYOUT)
    caption, image = sequence.main_segments
    assert sequence.ids[caption.start : caption.stop].tolist() == [
        VOCABULARY.to_text_id(t) for t in MAIN.text
    ]
    assert sequence.ids[image.start : image.stop].tolist() == [
        VOCABULARY.to_image_id(c) for c in MAIN.image
    ]
    assert image.modality is Modality.IMAGE
    assert image.document == 1


def test_length_is_the_sum_of_the_documents():
    sequence = lay_out(MAIN, [CONTEXT, EMPTY], LAYOUT)
    lengths = [LAYOUT.document_length(d) for d in (CONTEXT, EMPTY, MAIN)]
    assert len(sequence.ids) == 1 + sum(lengths)


def test_an_image_of_another_grid_is_refused():
    with pytest.raises(ValueError, match="3 image codes; the layout has 2"):
        lay_out(DocumentTokens(text=(), image=(0, 0, 0)), [], LAYOUT)
    with pytest.raises(ValueError, match="max_text_tokens"):
        Layout(vocabulary=VOCABULARY, image_tokens=2, max_text_tokens=0)
