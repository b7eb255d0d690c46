"""The loss: main document fully, contexts by alpha, per main token.

    loss = (sum of NLL over main labels + alpha * sum over context labels) / number of main labels

RA-CM3 section 3.3 gives the sum and alpha = 0.1; how the two are normalised is not stated, dividing
by the main labels is ours: a batch with more contexts must not weaken the main document's gradient.
A label of weight 0 (sentinel, padding, contexts at alpha = 0) enters neither loss nor gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from racm3.sequence.batch import Batch, Modality

_IGNORED = -100
_ROLES = ("context", "main")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossParts:
    """The loss and what it is made of."""

    loss: Tensor
    """Scalar float32; carries the gradient."""

    nll_sums: Tensor
    """(2, 3) float32, detached: unweighted NLL in nats by role (context, main) and `Modality`."""

    counts: Tensor
    """(2, 3) float32: labels of weight above 0, likewise."""

    def means(self, counts: Tensor | None = None) -> dict[str, float]:
        """Mean NLL in nats of each role and modality that occurs, such as `main_image`.

        Args:
            counts: (2, 3), what the sums are divided by instead: with the `label_counts` of a whole
                step, the means of its micro-batches add up to the step's.
        """
        sums, labels = self.nll_sums.tolist(), (self.counts if counts is None else counts).tolist()
        return {
            f"{role}_{modality.name.lower()}": sums[row][modality] / labels[row][modality]
            for row, role in enumerate(_ROLES)
            for modality in Modality
            if labels[row][modality]
        }


def label_counts(batch: Batch) -> Tensor:
    """(2, 3) float32: labels of weight above 0 by role (context, main) and `Modality`."""
    return _by_cell(batch, torch.ones_like(batch.weights))


def main_labels(counts: Tensor) -> Tensor:
    """Labels of the main document among `label_counts`, at least 1: what a loss is divided by."""
    return counts[_ROLES.index("main")].sum().clamp(min=1)


def token_nll(logits: Tensor, batch: Batch) -> Tensor:
    """NLL in nats of every label, [B, T] float32; exactly 0 without gradient where weight is 0.

    Args:
        logits: [B, T, vocabulary.size], any float type; computed in float32.
        batch: the batch they were computed from.
    """
    labels = batch.labels.masked_fill(batch.weights == 0, _IGNORED)
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none"
    ).view_as(labels)


def weighted_loss(
    logits: Tensor, batch: Batch, *, denominator: float | Tensor | None = None
) -> LossParts:
    """The loss of a batch; alpha is in `batch.weights` already.

    Args:
        logits: [B, T, vocabulary.size].
        batch: the batch they were computed from.
        denominator: what the sum is divided by, instead of this batch's number of main labels. Data
            parallel training that averages gradients over ranks is exact with the main labels of
            all ranks divided by the number of ranks.
    """
    nll = token_nll(logits, batch)
    counts = label_counts(batch)
    if denominator is None:
        denominator = main_labels(counts)
    return LossParts(
        loss=(nll * batch.weights).sum() / denominator,
        nll_sums=_by_cell(batch, nll.detach()),
        counts=counts,
    )


def _by_cell(batch: Batch, values: Tensor) -> Tensor:
    """Sums float32 [B, T] over labels of weight above 0, by role and modality."""
    counted = batch.weights > 0
    cells = (batch.is_main.long() * len(Modality) + batch.modality.long())[counted]
    sums = torch.zeros(len(_ROLES) * len(Modality), device=values.device)
    return sums.index_add(0, cells, values[counted]).view(len(_ROLES), -1)


def row_nll(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of NLL in nats and number of labels of each row, both [B] float32, weight > 0 only.

    Perplexity over a set is exp of (sum of sums / sum of counts).
    """
    return token_nll(logits, batch).sum(dim=1), (batch.weights > 0).sum(dim=1).float()
