from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from racm3.document import DocumentTokens
from racm3.objective.loss import PositionBuckets, row_nll, token_nll, weighted_loss
from racm3.objective.masking import mask, to_row
from racm3.objective.spans import Span, SpanMixConfig, draw_spans
from racm3.sequence.batch import Batch, Modality
from racm3.sequence.layout import Layout, lay_out
from racm3.vocabulary import Vocabulary

V = Vocabulary(6, 5, num_sentinels=6)
LAYOUT = Layout(vocabulary=V, image_tokens=6, max_text_tokens=4)
SPANS = SpanMixConfig(none=0.1, uniform_spans=1, poisson_rate=2, max_masks=6)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Documents, the last being the main one, and the spans that are masked."""

    documents: list[DocumentTokens]
    spans: tuple[Span, ...]


def samples(rng):
    """One or two samples of one to three documents."""
    found = []
    for _ in range(rng.integers(1, 3)):
        documents = [
            DocumentTokens(
                text=tuple(rng.integers(0, 6, rng.integers(0, 5)).tolist()),
                image=tuple(rng.integers(0, 5, 6).tolist()),
            )
            for _ in range(rng.integers(1, 4))
        ]
        sequence = lay_out(documents[-1], documents[:-1], LAYOUT)
        config = dataclasses.replace(SPANS, break_limited=bool(rng.integers(2)))
        found.append(Sample(documents, draw_spans(sequence, config, rng).spans))
    return found


def batch_of(found, alpha):
    rows = []
    for sample in found:
        sequence = lay_out(sample.documents[-1], sample.documents[:-1], LAYOUT)
        rows.append(to_row(sequence, mask(sequence, sample.spans, V), LAYOUT, alpha=alpha))
    return Batch.of_rows(rows, pad_id=V.pad_id)


def logits_of(batch, rng):
    values = rng.normal(size=(*batch.labels.shape, V.size)).astype(np.float32)
    return torch.from_numpy(values).requires_grad_()


def case(rng, alpha):
    batch = batch_of(samples(rng), alpha)
    return batch, logits_of(batch, rng)


def gradient(logits, loss):
    return torch.autograd.grad(loss, logits)[0]


def plainly(sample, alpha):
    """(token, weight) of a masked sample, one after the other: sections 2 of CM3, 3.3 of RA-CM3."""
    ids, weights = [V.document_end_id], [alpha if len(sample.documents) > 1 else 1]
    for number, document in enumerate(sample.documents, start=1):
        main = number == len(sample.documents)
        ids += [V.text_range[t] for t in document.text] + [V.break_id]
        ids += [V.image_range[c] for c in document.image]
        ids += [V.document_end_id if main else V.break_id]
        weights += [1 if main else alpha] * (len(ids) - len(weights))
    plain, source, tail, position = list(zip(ids, weights, strict=True)), [], [], 0
    for number, span in enumerate(sample.spans):
        sentinel, eoss = (V.sentinel_id(number), 0), (V.eoss_id, weights[span.stop - 1])
        source += [*plain[position : span.start], sentinel]
        tail += [sentinel, *plain[span.start : span.stop], eoss]
        position = span.stop
    return source + plain[position:] + tail


def plain_loss(found, logits, alpha):
    total, mains = 0.0, 0
    for sample, row in zip(found, logits.tolist(), strict=True):
        for numbers, (token, weight) in zip(row, plainly(sample, alpha)[1:], strict=False):
            total += weight * (math.log(sum(map(math.exp, numbers))) - numbers[token])
            mains += weight == 1
    return total / mains


def test_masking_and_loss_are_those_of_a_plain_reference(cases):
    for rng in cases:
        alpha = rng.choice([0, 0.1, 0.5])
        found = samples(rng)
        batch = batch_of(found, alpha)
        logits = logits_of(batch, rng)
        for sample, inputs, labels in zip(
            found, batch.input_ids.tolist(), batch.labels.tolist(), strict=True
        ):
            expected = [token for token, _ in plainly(sample, alpha)]
            assert inputs[: len(expected) - 1] == expected[:-1]
            assert labels[: len(expected) - 1] == expected[1:]
        loss = weighted_loss(logits, batch).loss.item()
        assert loss == pytest.approx(plain_loss(found, logits, alpha), rel=1e-5)


def test_alpha_0_is_the_loss_without_contexts(cases):
    for rng in cases:
        batch, logits = case(rng, 0.0)
        parts = weighted_loss(logits, batch)
        main = batch.is_main & (batch.weights > 0)
        without = Batch(
            **{f.name: getattr(batch, f.name)[main][None] for f in dataclasses.fields(batch)}
        )
        alone = weighted_loss(logits[main][None], without)
        assert without.is_main.all()
        assert set(without.weights.tolist()[0]) == {1.0}
        assert torch.allclose(parts.loss, alone.loss)
        found = gradient(logits, parts.loss)
        assert torch.allclose(found, gradient(logits, alone.loss))
        assert not found[~batch.is_main].any()
        assert found[main].any(-1).all()
        assert {name.split("_")[0] for name in parts.means()} == {"main"}


def test_alpha_scales_the_loss_of_contexts(cases):
    for rng in cases:
        alpha = rng.uniform(0.01, 2)
        found = samples(rng)
        batches = [batch_of(found, value) for value in (0.0, alpha, 1.0)]
        logits = logits_of(batches[0], rng)
        nothing, something, everything = (weighted_loss(logits, batch).loss for batch in batches)
        assert torch.allclose(something, nothing + alpha * (everything - nothing))
        contexts = ~batches[0].is_main
        scaled = alpha * gradient(logits, everything)[contexts]
        assert torch.allclose(gradient(logits, something)[contexts], scaled)


def test_the_parts_make_the_whole(cases):
    for rng in cases:
        width, count = int(rng.integers(1, 31)), int(rng.integers(1, 6))
        batch, logits = case(rng, 0.1)
        buckets = PositionBuckets(width=width, count=count)
        parts = weighted_loss(logits, batch, buckets=buckets)
        assert not parts.nll_sums.requires_grad
        context, main = parts.nll_sums.sum((1, 2)).tolist()
        main_count = parts.counts[1].sum().item()
        assert parts.loss.item() == pytest.approx((main + 0.1 * context) / main_count, rel=1e-4)
        assert main_count == batch.num_main_tokens
        assert parts.counts.sum().item() == batch.num_tokens
        nll, seen = token_nll(logits, batch), batch.weights > 0
        positions = torch.arange(nll.shape[1]).expand_as(nll)
        cells = parts.tallies()
        for bucket in range(count):
            first, last = bucket * width, (bucket + 1) * width if bucket < count - 1 else 10**6
            inside = seen & batch.is_main & (batch.modality == Modality.IMAGE)
            inside &= (positions >= first) & (positions < last)
            name = f"main_image_at_{first}" if count > 1 else "main_image"
            expected = (nll[inside].sum().item(), float(inside.sum()))
            assert cells[name] == pytest.approx(expected, rel=1e-4)


def test_parts_are_named_by_role_modality_and_first_position():
    batch, logits = case(np.random.default_rng(0), 0.1)
    names = list(weighted_loss(logits, batch).tallies())
    roles = ["context", "main"]
    assert names == [f"{role}_{kind}" for role in roles for kind in ("special", "text", "image")]
    buckets = PositionBuckets.covering(100, width=40)
    assert buckets.count == 3
    longer = list(weighted_loss(logits, batch, buckets=buckets).tallies())
    ends = ["", "_at_0", "_at_40", "_at_80"]
    assert longer == [f"{name}{end}" for name in names for end in ends]
    with pytest.raises(ValueError, match="at least 1, not 0 and 3"):
        PositionBuckets(width=0, count=3)


def test_means_are_of_the_parts_that_occur():
    batch, logits = case(np.random.default_rng(0), 0.0)
    parts = weighted_loss(logits, batch)
    assert set(parts.means()) == {"main_special", "main_text", "main_image"}
    nll, count = parts.tallies()["main_image"]
    assert parts.means()["main_image"] == nll / count
    assert parts.tallies()["context_image"] == (0.0, 0.0)


def test_padding_changes_nothing(cases):
    for rng in cases:
        batch, logits = case(rng, 0.1)
        padded = Batch(
            **{
                field.name: torch.nn.functional.pad(getattr(batch, field.name), (0, 7))
                for field in dataclasses.fields(batch)
            }
        )
        longer = torch.nn.functional.pad(logits, (0, 0, 0, 7), value=3.0)
        here, there = weighted_loss(logits, batch), weighted_loss(longer, padded)
        assert torch.allclose(there.loss, here.loss)
        assert torch.allclose(gradient(logits, there.loss), gradient(logits, here.loss))
        assert there.means() == pytest.approx(here.means(), rel=1e-4)


def test_what_weighs_nothing_may_be_infinite():
    batch, logits = case(np.random.default_rng(1), 0.0)
    expected = weighted_loss(logits, batch).loss
    changed = logits.detach().clone()
    changed[batch.weights == 0] = float("inf")
    assert torch.equal(weighted_loss(changed, batch).loss, expected)


def test_ranks_with_a_shared_denominator_average_to_the_whole():
    rng = np.random.default_rng(0)
    batch = batch_of(samples(rng)[:1] + samples(rng)[:1], 0.1)
    logits = logits_of(batch, rng)
    whole = weighted_loss(logits, batch).loss
    rows = [
        Batch(**{f.name: getattr(batch, f.name)[r : r + 1] for f in dataclasses.fields(batch)})
        for r in range(2)
    ]
    shared = sum(row.num_main_tokens for row in rows) / 2
    losses = [
        weighted_loss(logits[r : r + 1], row, denominator=shared).loss for r, row in enumerate(rows)
    ]
    assert (sum(losses) / 2).item() == pytest.approx(whole.item(), 1e-6)


def test_row_sums():
    batch, logits = case(np.random.default_rng(2), 0.1)
    sums, counts = row_nll(logits, batch)
    assert torch.allclose(sums, token_nll(logits, batch).sum(1))
    assert counts.sum().item() == batch.num_tokens
    flat = torch.zeros_like(logits)
    sums, counts = row_nll(flat, batch)
    assert torch.allclose(sums / counts, torch.tensor(math.log(V.size)))


def test_half_precision_logits_are_computed_in_float32():
    batch, logits = case(np.random.default_rng(3), 0.1)
    half = logits.detach().bfloat16()
    assert torch.equal(weighted_loss(half, batch).loss, weighted_loss(half.float(), batch).loss)
