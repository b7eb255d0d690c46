from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from racm3.objective.loss import label_counts, main_labels, row_nll, token_nll, weighted_loss
from racm3.objective.masking import mask, to_row
from racm3.objective.spans import Span
from racm3.sequence.batch import Batch


@pytest.fixture
def make_batch(layout, make_sequence):
    """Two rows of unlike length, with a masked span in each."""

    def make(alpha):
        rows = []
        for lengths, span in (((3, 4), Span(2, 4)), ((5, 6, 7), Span(60, 63))):
            sequence = make_sequence(*lengths)
            masked = mask(sequence, [span], layout.vocabulary)
            rows.append(to_row(sequence, masked, layout, alpha=alpha))
        return Batch.of_rows(rows, pad_id=layout.vocabulary.pad_id)

    return make


@pytest.fixture
def logits(layout, make_batch):
    shape = (*make_batch(1.0).labels.shape, layout.vocabulary.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def by_hand(logits, batch):
    """The formula, token by token."""
    total, main = 0.0, 0
    log_probabilities = logits.detach().double().log_softmax(-1)
    for row, column in torch.cartesian_prod(*map(torch.arange, batch.labels.shape)).tolist():
        weight = float(batch.weights[row, column])
        total -= weight * float(log_probabilities[row, column, batch.labels[row, column]])
        main += bool(batch.is_main[row, column]) and weight > 0
    return total / main


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_loss_is_the_formula(make_batch, logits, alpha):
    batch = make_batch(alpha)
    assert weighted_loss(logits, batch).loss.item() == pytest.approx(by_hand(logits, batch), 1e-5)


def test_main_and_context_sums_make_the_loss(make_batch, logits):
    batch = make_batch(0.1)
    parts = weighted_loss(logits, batch)
    context, main = parts.nll_sums.sum(1).tolist()
    main_count = parts.counts.sum(1)[1].item()
    assert parts.loss.item() == pytest.approx((main + 0.1 * context) / main_count, 1e-5)
    assert main_count == batch.num_main_tokens
    assert parts.counts.sum().item() == batch.num_tokens
    assert parts.means()["main_image"] == pytest.approx(
        parts.nll_sums[1, 2].item() / parts.counts[1, 2].item()
    )
    assert not parts.nll_sums.requires_grad


def test_alpha_0_ignores_contexts_entirely(make_batch, logits):
    batch = make_batch(0.0)
    parts = weighted_loss(logits, batch)
    parts.loss.backward()
    ignored = ~batch.is_main
    assert not logits.grad[ignored].any()
    assert logits.grad[batch.is_main & (batch.weights > 0)].any(-1).all()
    changed = logits.detach().clone()
    changed[ignored] = float("inf")
    assert torch.equal(weighted_loss(changed, batch).loss, parts.loss)
    assert {name.split("_")[0] for name in parts.means()} == {"main"}


def test_sentinels_and_padding_weigh_nothing(layout, make_batch, logits):
    batch = make_batch(0.5)
    sentinels = torch.isin(batch.labels, torch.tensor(list(layout.vocabulary.sentinel_range)))
    silent = sentinels | (batch.labels == layout.vocabulary.pad_id)
    assert sentinels.sum() == 4
    weighted_loss(logits, batch).loss.backward()
    assert not batch.weights[silent].any()
    assert not logits.grad[silent].any()
    assert (batch.weights[~silent] > 0).all()


def test_padding_changes_nothing(make_batch, logits):
    batch = make_batch(0.1)
    padded = Batch(
        **{
            field.name: torch.nn.functional.pad(getattr(batch, field.name), (0, 7))
            for field in dataclasses.fields(batch)
        }
    )
    more = torch.nn.functional.pad(logits.detach(), (0, 0, 0, 7), value=3.0)
    loss, longer = weighted_loss(logits, batch).loss, weighted_loss(more, padded).loss
    assert longer.item() == pytest.approx(loss.item(), rel=1e-6)


def test_ranks_with_a_shared_denominator_average_to_the_whole(make_batch, logits):
    batch = make_batch(0.1)
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


def test_row_sums(layout, make_batch, logits):
    batch = make_batch(0.1)
    sums, counts = row_nll(logits, batch)
    assert torch.allclose(sums, token_nll(logits, batch).sum(1))
    assert counts.sum().item() == batch.num_tokens
    flat = torch.zeros_like(logits)
    sums, counts = row_nll(flat, batch)
    assert torch.allclose(sums / counts, torch.tensor(math.log(layout.vocabulary.size)))


def test_half_precision_logits_are_computed_in_float32(make_batch, logits):
    batch = make_batch(0.1)
    half = logits.detach().bfloat16()
    assert torch.equal(weighted_loss(half, batch).loss, weighted_loss(half.float(), batch).loss)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_parts_of_a_batch_add_up_to_it(make_batch, logits, alpha):
    """Loss and means, when divided by the labels of the whole."""
    batch = make_batch(alpha)
    counts = label_counts(batch)
    assert main_labels(counts) == batch.num_main_tokens
    whole = weighted_loss(logits, batch)
    assert torch.equal(whole.counts, counts)
    rows = [
        Batch(**{f.name: getattr(batch, f.name)[r : r + 1] for f in dataclasses.fields(batch)})
        for r in range(2)
    ]
    parts = [
        weighted_loss(logits[r : r + 1], row, denominator=main_labels(counts))
        for r, row in enumerate(rows)
    ]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss)
    means = [part.means(counts) for part in parts]
    assert means[0].keys() == means[1].keys() == whole.means().keys()
    for name, value in whole.means().items():
        assert means[0][name] + means[1][name] == pytest.approx(value, 1e-5)
