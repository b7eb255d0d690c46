from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from racm3.document import DocumentTokens
from racm3.objective.masking import unmask
from racm3.objective.spans import SpanMixConfig
from racm3.sequence.layout import Layout, lay_out
from racm3.training.draws import whole_step
from racm3.training.examples import Example, QueryContexts
from racm3.training.stream import StreamConfig, draw_batch, epoch_length
from racm3.vocabulary import Vocabulary

V = Vocabulary(60, 30, num_sentinels=16)
LAYOUT = Layout(vocabulary=V, image_tokens=9, max_text_tokens=5)
CONFIG = StreamConfig(batch_size=8, max_text_tokens=5)
KINDS = (("text", 0), ("text", 1), ("image", 0))


def document(number):
    return DocumentTokens(
        text=tuple((number + t) % 60 for t in range(number % 7)),
        image=tuple((3 * number + c) % 30 for c in range(9)),
    )


def queries(number):
    """Candidates whose number tells which query, draw and rank they come from."""
    found = []
    for kind, (query, draw) in enumerate(KINDS):
        numbers = [1000 + 100 * kind + 10 * rank + number % 10 for rank in range(3)]
        found.append(
            QueryContexts(
                query=query,
                draw=draw,
                document_ids=tuple(f"d{n}" for n in numbers),
                contexts=tuple(map(document, numbers)),
            )
        )
    return tuple(found)


def example(number, **changes):
    values = {"main": document(number), "queries": queries(number), "group": None, **changes}
    return Example(example_id=f"e{number}", document_id=f"d{number}", **values)


EXAMPLES = [example(number) for number in range(20)]


def draw(step, config=CONFIG, examples=EXAMPLES, layout=LAYOUT, **changes):
    return draw_batch(
        examples, layout=layout, config=config, seed=changes.pop("seed", 3), step=step, **changes
    )


def equal(left, right):
    names = [field.name for field in fields(left) if field.name != "samples"]
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in names)


def rows_of(records):
    return [row for record in records for row in record.rows]


def test_from_any_step_the_next_batches_are_the_same():
    walked = [draw(step) for step in range(12)]
    for start in (11, 4, 0, 7):
        for step in range(start, 12):
            batch, record = draw(step)
            assert equal(batch, walked[step][0])
            assert record == walked[step][1]
    assert len({record.batch_digest for _, record in walked}) == 12
    assert draw(0, seed=4)[1].batch_digest != walked[0][1].batch_digest


def test_every_epoch_covers_every_example_once():
    seen = Counter(
        (row.epoch, row.example_id) for row in rows_of(draw(step)[1] for step in range(5))
    )
    assert set(seen) == {(e, f"e{n}") for e in (0, 1) for n in range(20)}
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("k_per_batch", [True, False])
def test_ranks_share_the_batch_of_one(k_per_batch):
    config = replace(CONFIG, k_per_batch=k_per_batch)
    for step in range(2):
        _, whole = draw(step, config)
        parts = [draw(step, config, rank=rank, world_size=4)[1].rows for rank in range(4)]
        assert tuple(row for rows in zip(*parts, strict=True) for row in rows) == whole.rows
        assert len({row.example_id for rows in parts for row in rows}) == 8


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_what_ranks_draw_in_parts_is_what_one_draws(parts):
    """Rows, digest and all, whoever draws them."""
    config = replace(CONFIG, k_per_batch=False, image_noise=0.5)
    for step in range(2):
        drawn = [
            [draw(step, config, rank=rank, world_size=2, part=part, parts=parts)
             for part in range(parts)]
            for rank in (0, 1)
        ]  # fmt: skip
        sizes = [len(batch.labels) for rank in drawn for batch, _ in rank]
        assert sum(sizes) == 8
        assert max(sizes) - min(sizes) <= 1
        _, whole = draw(step, config)
        assert whole_step([[record for _, record in rank] for rank in drawn]) == whole


@pytest.mark.parametrize(("part", "parts"), [(0, 0), (2, 2), (-1, 2), (0, 5)])
def test_a_part_without_a_row_is_refused(part, parts):
    with pytest.raises(ValueError, match=f"4 rows of a rank and step have no part {part} of"):
        draw(0, rank=0, world_size=2, part=part, parts=parts)


def test_rows_are_the_examples_masked_and_contexts_in_the_order_recorded():
    tokens = {e.document_id: e.main for e in EXAMPLES}
    for e in EXAMPLES:
        for q in e.queries:
            tokens.update(zip(q.document_ids, q.contexts, strict=True))
    for step in range(10):
        batch, record = draw(step)
        for index, row in enumerate(record.rows):
            contexts = [tokens[i] for i in row.context_ids]
            expected = lay_out(tokens[f"d{row.example_id[1:]}"], contexts, LAYOUT)
            assert row.cut_text_tokens == expected.cut_text_tokens
            length = len(expected.ids) + 3 * len(row.masking.spans)
            fed = torch.cat([batch.input_ids[index, :1], batch.labels[index, : length - 1]])
            assert unmask(fed.numpy(), V).tolist() == expected.ids.tolist()
            assert not batch.weights[index, length - 1 :].any()


def test_k_is_uniform_and_shared_by_a_batch():
    drawn = [{len(row.context_ids) for row in draw(step)[1].rows} for step in range(200)]
    assert all(len(ks) == 1 for ks in drawn)
    counts = Counter(ks.pop() for ks in drawn)
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) > 40
    config = replace(CONFIG, k_per_batch=False)
    mixed = [{len(row.context_ids) for row in draw(step, config)[1].rows} for step in range(5)]
    assert any(len(ks) > 1 for ks in mixed)


def test_contexts_are_the_best_of_one_query():
    config = replace(CONFIG, k_per_batch=False)
    rows = rows_of(draw(step, config)[1] for step in range(100))
    orders, used = Counter(), Counter()
    for row in rows:
        if not row.context_ids:
            assert row.query is None
            continue
        used[row.query, row.draw] += 1
        digits = [divmod(int(i[1:]) - 1000, 100) for i in row.context_ids]
        assert {KINDS[kind] for kind, _ in digits} == {(row.query, row.draw)}
        ranks = [rest // 10 for _, rest in digits]
        assert sorted(ranks) == list(range(len(ranks)))
        orders[tuple(ranks)] += 1
    assert set(used) == set(KINDS)
    assert used["image", 0] / used.total() == pytest.approx(0.5, abs=0.08)
    assert orders[0, 1] / (orders[0, 1] + orders[1, 0]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("order", ["best_first", "best_last"])
def test_contexts_in_the_order_that_is_named(order):
    config = replace(CONFIG, context_order=order, query_probability_text=1.0)
    for row in rows_of(draw(step, config)[1] for step in range(20)):
        assert row.query in (None, "text")
        ranks = [(int(i[1:]) - 1000) % 100 // 10 for i in row.context_ids]
        best_first = list(range(len(ranks)))
        assert ranks == (best_first if order == "best_first" else best_first[::-1])


def test_missing_contexts_make_k_smaller():
    one = tuple(
        replace(q, document_ids=q.document_ids[:1], contexts=q.contexts[:1]) for q in queries(1)
    )
    empty = tuple(replace(q, document_ids=(), contexts=()) for q in queries(1))
    image_only = queries(1)[2:]
    for changed, most in ((one, 1), (empty, 0), ((), 0), (image_only, 2)):
        examples = [example(n, queries=changed) for n in range(8)]
        rows = rows_of(draw(step, examples=examples)[1] for step in range(15))
        assert max(len(row.context_ids) for row in rows) == most


def test_the_first_steps_may_be_without_contexts():
    config = replace(CONFIG, k0_fraction=0.25)
    ks = [
        max(len(r.context_ids) for r in draw(s, config, total_steps=40)[1].rows) for s in range(40)
    ]
    assert not any(ks[:10])
    assert any(ks[10:])
    with pytest.raises(ValueError, match="total_steps"):
        draw(0, config)


def test_vanilla_reads_no_contexts_and_causal_masks_nothing():
    vanilla = replace(CONFIG, max_k=0)
    causal = replace(CONFIG, objective="causal")
    for step in range(10):
        batch, record = draw(step, vanilla)
        assert not any(row.context_ids for row in record.rows)
        assert not batch.slots.any()
        batch, record = draw(step, causal)
        assert not any(row.masking.spans for row in record.rows)
        assert not torch.isin(batch.input_ids, torch.tensor([*V.sentinel_range, V.eoss_id])).any()


def test_long_rows_leave_contexts_out_and_keep_every_ending():
    single = SpanMixConfig(uniform_spans=0)
    config = replace(CONFIG, max_length=2 * 16 + 3, spans=single)
    left_out = 0
    for step in range(30):
        batch, record = draw(step, config)
        assert batch.input_ids.shape[1] <= config.max_length
        left_out += sum(row.contexts_left_out for row in record.rows)
        spans = sum(len(row.masking.spans) for row in record.rows)
        assert (batch.labels == V.eoss_id).sum() == spans
    assert left_out > 0


@pytest.mark.parametrize(("max_length", "fed"), [(51, 2), (50, 1), (35, 1), (34, 0)])
def test_room_is_counted_to_the_token(max_length, fed):
    full = DocumentTokens(text=(1,) * 5, image=(2,) * 9)
    found = QueryContexts(
        query="text", draw=0, document_ids=("a", "b", "c"), contexts=(full, full, full)
    )
    examples = [example(n, main=full, queries=(found,)) for n in range(8)]
    mix = SpanMixConfig(none=0, uniform_spans=0)
    config = replace(CONFIG, max_length=max_length, spans=mix, max_k=2)
    drawn = [draw(step, config, examples) for step in range(20)]
    rows = rows_of(record for _, record in drawn)
    assert max(len(row.context_ids) for row in rows) == fed
    assert max(row.contexts_left_out for row in rows) == 2 - fed
    longest = max(batch.input_ids.shape[1] for batch, _ in drawn)
    assert longest == 16 * (fed + 1) + 3


def test_group_weights_change_how_often():
    examples = [example(n, group="flags" if n < 5 else None) for n in range(20)]
    config = replace(CONFIG, batch_size=5, group_weights={"flags": 3.0})
    assert epoch_length(examples, config) == 30
    assert epoch_length(examples, CONFIG) == 20
    rows = rows_of(draw(step, config, examples)[1] for step in range(6))
    seen = Counter(row.example_id for row in rows)
    assert [seen[f"e{n}"] for n in range(20)] == [3] * 5 + [1] * 15


def test_alpha_is_the_weight_of_contexts():
    config = replace(CONFIG, alpha=0.3)
    weights = torch.cat([draw(step, config)[0].weights.flatten() for step in range(6)])
    assert sorted(set(weights.tolist())) == pytest.approx([0.0, 0.3, 1.0])


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (CONFIG, {"world_size": 3}, "must divide"),
        (CONFIG, {"rank": 2, "world_size": 2}, "rank be below"),
        (CONFIG, {"examples": []}, "no example"),
        (replace(CONFIG, max_text_tokens=6), {}, "give both the same"),
        (replace(CONFIG, spans=SpanMixConfig(max_masks=17)), {}, "only 16 sentinels"),
        (replace(CONFIG, max_length=40), {}, "raise it to 64"),
    ],
)
def test_what_does_not_fit_together_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        draw(0, config, **changes)


def test_config_checks_itself_and_refuses_unknown_keys():
    with pytest.raises(ValueError, match=r"batch_size >= 1, alpha is finite"):
        StreamConfig(batch_size=0, alpha=float("nan"))
    adapter = TypeAdapter(StreamConfig)
    assert adapter.validate_python({"spans": {"none": 1.0}}).spans.none == 1.0
    for wrong in ({"bacth_size": 3}, {"spans": {"whole_captoin": 1.0}}):
        with pytest.raises(ValidationError, match="Unexpected keyword argument"):
            adapter.validate_python(wrong)


def test_noise_is_in_the_inputs_alone_and_the_same_on_any_number_of_ranks():
    noisy = replace(CONFIG, image_noise=0.4)
    for step in range(3):
        plain, _ = draw(step)
        batch, record = draw(step, noisy)
        assert not torch.equal(batch.input_ids, plain.input_ids)
        assert record.batch_digest != draw(step)[1].batch_digest
        assert equal(replace(batch, input_ids=plain.input_ids), plain)
        halves = [draw(step, noisy, rank=rank, world_size=2)[0] for rank in (0, 1)]
        for rank, half in enumerate(halves):
            length = half.input_ids.shape[1]
            assert torch.equal(half.input_ids, batch.input_ids[rank::2, :length])


def test_packing_changes_where_samples_stand_and_nothing_else():
    packed = replace(CONFIG, k_per_batch=False, max_length=120, pack_length=130)
    alone = replace(packed, pack_length=None)
    for step in range(20):
        (batch, record), (rows, same) = draw(step, packed), draw(step, alone)
        assert record == same
        assert batch.samples is not None
        assert batch.input_ids.shape[1] <= 130
        assert batch.num_tokens == rows.num_tokens
        assert batch.num_main_tokens == rows.num_main_tokens
        starts = (batch.positions == 0) & (batch.labels != V.pad_id)
        assert starts.sum() == len(rows.labels) == 8
        assert (batch.input_ids[starts] == V.document_end_id).all()
        before = batch.labels[:, :-1][starts[:, 1:]]
        assert (before != V.pad_id).all()  # rows are filled from the left without a gap
        inside = {tuple(ids[: held.sum()].tolist()) for ids, held in
                  zip(rows.input_ids, rows.labels != V.pad_id, strict=True)}  # fmt: skip
        assert inside == {
            tuple(batch.input_ids[row, column : column + size].tolist())
            for row, column in starts.nonzero().tolist()
            for size in [len_of(batch, row, column)]
        }


def len_of(batch, row, column):
    """Tokens of the sample that starts there: until positions start anew, or padding."""
    held = (batch.positions[row, column + 1 :] > 0) & (batch.labels[row, column + 1 :] != V.pad_id)
    return 1 + int(held.long().cumprod(0).sum())


def test_rows_for_packing_hold_the_longest_sample():
    with pytest.raises(ValueError, match="pack_length >= max_length"):
        replace(CONFIG, max_length=100, pack_length=99)
    assert replace(CONFIG, max_length=100, pack_length=100).pack_length == 100


MASKS = {
    "whole_caption": {"image"},
    "whole_image": {"text"},
    "image_span": {"text"},
    "none": {"text"},
    "uniform_spans": {"text", "image"},
}


@pytest.mark.parametrize(("sampler", "asks"), MASKS.items())
def test_the_side_that_is_not_asked_for_is_the_query(sampler, asks):
    spans = SpanMixConfig(**(dict.fromkeys(MASKS, 0.0) | {sampler: 1.0}))
    config = replace(CONFIG, spans=spans, query_follows_task=True)
    rows = rows_of(draw(step, config)[1] for step in range(40))
    assert {row.masking.sampler for row in rows} == {sampler}
    assert {row.query for row in rows if row.context_ids} == asks


def test_a_query_that_follows_the_task_leaves_the_mix_as_it_is():
    config = replace(CONFIG, query_follows_task=True)
    rows = rows_of(draw(step, config)[1] for step in range(150))
    for sampler, share in config.spans.probabilities.items():
        found = sum(row.masking.sampler == sampler for row in rows) / len(rows)
        assert abs(found - share) < 5 * (share * (1 - share) / len(rows)) ** 0.5


def test_a_dropped_caption_is_hidden_and_not_learned():
    config = StreamConfig(
        batch_size=8, max_text_tokens=5, objective="causal", max_k=0, caption_dropout=0.5
    )
    hidden = 0
    for step in range(20):
        batch, record = draw(step, config)
        for row, drawn in enumerate(record.rows):
            main = EXAMPLES[int(drawn.example_id[1:])].main
            caption = [V.to_text_id(token) for token in main.text[:5]]
            image = [V.to_image_id(code) for code in main.image]
            shown = caption if not drawn.masking.spans else [V.sentinel_id(0)]
            whole = [V.document_end_id, *shown, V.break_id, *image, V.document_end_id]
            assert batch.input_ids[row, : len(whole) - 1].tolist() == whole[:-1]
            assert batch.labels[row, : len(whole) - 1].tolist() == whole[1:]
            assert (batch.weights[row] > 0).sum() == len(whole) - 1 - bool(drawn.masking.spans)
            hidden += bool(drawn.masking.spans)
    assert 40 < hidden < 100


def test_captions_are_dropped_from_causal_rows_only():
    with pytest.raises(ValueError, match="caption_dropout only under objective causal"):
        StreamConfig(caption_dropout=0.1)
