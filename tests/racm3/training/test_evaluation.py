from __future__ import annotations

import pytest
import torch

from racm3.document import DocumentTokens
from racm3.sequence.layout import Layout, lay_out
from racm3.training.evaluation import evaluation_batch
from racm3.training.examples import Example, QueryContexts
from racm3.vocabulary import Vocabulary

V = Vocabulary(60, 30, num_sentinels=16)
LAYOUT = Layout(vocabulary=V, image_tokens=9, max_text_tokens=5)
KINDS = (("text", 0), ("text", 1), ("image", 0))


def document(number):
    return DocumentTokens(
        text=tuple((number + t) % 60 for t in range(number % 7)),
        image=tuple((3 * number + c) % 30 for c in range(9)),
    )


def queries(number):
    """Three contexts for each kind of query."""
    found = []
    for kind, (query, draw) in enumerate(KINDS):
        numbers = [1000 + 100 * kind + 10 * rank + number % 10 for rank in range(3)]
        ids, contexts = tuple(f"d{n}" for n in numbers), tuple(map(document, numbers))
        found.append(QueryContexts(query=query, draw=draw, document_ids=ids, contexts=contexts))
    return tuple(found)


def example(number, **changes):
    values = {"main": document(number), "queries": queries(number), **changes}
    return Example(example_id=f"e{number}", document_id=f"d{number}", **values)


EXAMPLES = [example(number) for number in range(20)]


def measured(batch, row):
    return batch.labels[row][batch.weights[row] > 0].tolist()


@pytest.mark.parametrize("k", [0, 1, 2])
def test_image_evaluation_measures_the_image_after_contexts_and_caption(k):
    batch = evaluation_batch(EXAMPLES, layout=LAYOUT, task="image", k=k)
    for row, e in enumerate(EXAMPLES):
        sequence = lay_out(e.main, e.queries[0].contexts[:k], LAYOUT)
        assert measured(batch, row) == [V.to_image_id(c) for c in e.main.image]
        length = len(sequence.ids) - 1
        assert batch.input_ids[row, :length].tolist() == sequence.ids[:-1].tolist()
    assert set(batch.weights.unique().tolist()) == {0.0, 1.0}
    assert batch.is_main[batch.weights > 0].all()


def test_caption_evaluation_measures_the_caption_after_contexts_and_image():
    batch = evaluation_batch(EXAMPLES, layout=LAYOUT, task="caption", k=2)
    for row, e in enumerate(EXAMPLES):
        caption = [V.to_text_id(t) for t in e.main.text[:5]]
        assert measured(batch, row) == caption
        if not caption:
            continue
        contexts = lay_out(e.main, e.queries[2].contexts[:2], LAYOUT)
        before = contexts.main_segments[0].start
        image = [V.to_image_id(c) for c in e.main.image]
        source = [*contexts.ids[:before].tolist(), V.sentinel_id(0), V.break_id, *image]
        expected = [*source, V.document_end_id, V.sentinel_id(0), *caption]
        assert batch.input_ids[row, : len(expected)].tolist() == expected


def test_wrong_contexts_take_the_place_of_the_retrieved():
    wrong = [[document(n + 50), document(n + 70), document(n + 90)] for n in range(20)]
    for order, fed in (("best_first", wrong[4][:2]), ("best_last", wrong[4][1::-1])):
        batch = evaluation_batch(
            EXAMPLES, layout=LAYOUT, task="image", k=2, contexts=wrong, order=order
        )
        expected = lay_out(EXAMPLES[4].main, fed, LAYOUT).ids[:-1].tolist()
        assert batch.input_ids[4, : len(expected)].tolist() == expected
    with pytest.raises(ValueError, match="shorter"):
        evaluation_batch(EXAMPLES, layout=LAYOUT, task="image", k=2, contexts=wrong[:3])


def test_shuffled_evaluation_depends_on_the_document_alone():
    def fed(examples, seed=0):
        return evaluation_batch(
            examples, layout=LAYOUT, task="image", k=2, order="shuffled", seed=seed
        )

    whole, turned = fed(EXAMPLES), fed(EXAMPLES[::-1])
    assert torch.equal(whole.input_ids, turned.input_ids.flip(0))
    assert not torch.equal(whole.input_ids, fed(EXAMPLES, seed=1).input_ids)
    orders = {
        order: evaluation_batch(EXAMPLES, layout=LAYOUT, task="image", k=2, order=order).input_ids
        for order in ("best_first", "best_last")
    }
    for row in range(len(EXAMPLES)):
        assert any(torch.equal(whole.input_ids[row], ids[row]) for ids in orders.values())
    for ids in orders.values():
        assert not torch.equal(whole.input_ids, ids)


def test_evaluation_never_reads_the_other_query():
    examples = [example(n, queries=queries(n)[2:]) for n in range(4)]
    batch = evaluation_batch(examples, layout=LAYOUT, task="image", k=2)
    assert not batch.slots.any()
    assert evaluation_batch(examples, layout=LAYOUT, task="caption", k=2).slots.max() == 2
