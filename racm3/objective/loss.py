"""The loss: main document fully, contexts by alpha, per main token.

    loss = (sum of NLL over main labels + alpha * sum over context labels) / number of main labels

RA-CM3 section 3.3 gives the sum and alpha = 0.1; how the two are normalised is not stated, dividing
by the main labels is ours: a batch with more contexts must not weaken the main document's gradient.
A label of weight 0 (sentinel, padding, contexts at alpha = 0) enters neither loss nor gradient.

Beside the loss stand its parts, to be logged: by role, by modality and, as CM3Leon's code base does
with buckets of 1024 positions, by position. A main document stands later the more contexts are in
front of it, so that its NLL by position shows what contexts are worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from racm3.sequence.batch import Batch, Modality

_IGNORED = -100
_ROLES = ("context", "main")


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionBuckets:
    """Positions of a sample, `width` to a bucket; the last bucket holds all that follow.

    Raises:
        ValueError: when a number is below 1.
    """

    width: int
    """Positions of one bucket: 1024 in CM3Leon's code base; about an image's codes."""

    count: int
    """Buckets, the same for every batch that is logged together."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.count < 1:
            raise ValueError(
                f"PositionBuckets needs width and count of at least 1, not {self.width} and "
                f"{self.count}"
            )

    @classmethod
    def covering(cls, length: int, *, width: int) -> PositionBuckets:
        """As many as samples of `length` inputs need."""
        return cls(width=width, count=-(-length // width))

    def of(self, positions: Tensor) -> Tensor:
        """Bucket of each position, int64 of any shape -> likewise, 0..count-1."""
        return (positions // self.width).clamp(max=self.count - 1)


_ONE_BUCKET = PositionBuckets(width=1, count=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossParts:
    """The loss and what it is made of."""

    loss: Tensor
    """Scalar float32; carries the gradient."""

    nll_sums: Tensor
    """(2, 3, n) float32, detached: unweighted NLL in nats by role (context, main), `Modality` and
    bucket."""

    counts: Tensor
    """(2, 3, n) float32: labels of weight above 0, likewise."""

    buckets: PositionBuckets
    """The n buckets."""

    def tallies(self) -> dict[str, tuple[float, float]]:
        """NLL in nats and number of labels of every part, whether it occurs or not.

        The parts are role and modality, such as `main_image`, and where there is more than one
        bucket also role, modality and the bucket's first position, such as `main_image_at_1024`.
        The names depend on the buckets only, so they are the same in every batch and on every rank.
        """
        both = torch.stack([self.nll_sums, self.counts], dim=-1)
        whole, split = both.sum(dim=2).tolist(), both.tolist()
        found: dict[str, tuple[float, float]] = {}
        for (row, role), modality in product(enumerate(_ROLES), Modality):
            name = f"{role}_{modality.name.lower()}"
            found[name] = tuple(whole[row][modality])
            if self.buckets.count > 1:
                for bucket, pair in enumerate(split[row][modality]):
                    found[f"{name}_at_{bucket * self.buckets.width}"] = tuple(pair)
        return found

    def means(self) -> dict[str, float]:
        """Mean NLL in nats of each part that occurs, named as in `tallies`."""
        return {name: nll / count for name, (nll, count) in self.tallies().items() if count}


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
    logits: Tensor,
    batch: Batch,
    *,
    denominator: float | Tensor | None = None,
    buckets: PositionBuckets | None = None,
) -> LossParts:
    """The loss of a batch; alpha is in `batch.weights` already.

    Args:
        logits: [B, T, vocabulary.size].
        batch: the batch they were computed from.
        denominator: what the sum is divided by, instead of this batch's number of main labels. Data
            parallel training that averages gradients over ranks is exact with the main labels of
            all ranks divided by the number of ranks.
        buckets: in which the parts are counted apart; None: all positions together.
    """
    nll = token_nll(logits, batch)
    buckets = buckets or _ONE_BUCKET
    counts = _by_cell(batch, torch.ones_like(batch.weights), buckets)
    if denominator is None:
        denominator = counts[_ROLES.index("main")].sum().clamp(min=1)
    return LossParts(
        loss=(nll * batch.weights).sum() / denominator,
        nll_sums=_by_cell(batch, nll.detach(), buckets),
        counts=counts,
        buckets=buckets,
    )


def _by_cell(batch: Batch, values: Tensor, buckets: PositionBuckets) -> Tensor:
    """Sums of float32 [B, T] over labels of weight above 0: (2, 3, n), as in `LossParts`."""
    counted = batch.weights > 0
    parts = batch.is_main.long() * len(Modality) + batch.modality.long()
    cells = parts * buckets.count + buckets.of(batch.positions)
    sums = torch.zeros(len(_ROLES) * len(Modality) * buckets.count, device=values.device)
    return sums.index_add(0, cells[counted], values[counted]).view(len(_ROLES), len(Modality), -1)


def row_nll(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of NLL in nats and number of labels of each row, both [B] float32, weight > 0 only.

    Perplexity over a set is exp of (sum of sums / sum of counts).
    """
    return token_nll(logits, batch).sum(dim=1), (batch.weights > 0).sum(dim=1).float()
