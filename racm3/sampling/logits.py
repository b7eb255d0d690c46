"""From logits to a distribution: guidance, contrast, repetition, temperature, top-k, top-p.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def guide(conditional_BV: Tensor, unconditional_BV: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (CM3Leon 3.1): u + scale * (c - u); 1 gives c, 0 gives u."""
    return unconditional_BV + scale * (conditional_BV - unconditional_BV)


def contrast(
    expert_BV: Tensor, amateur_BV: Tensor, *, k: int, alpha: float, amateur_temperature: float
) -> Tensor:
    """Contrastive decoding CD-K (CM3Leon 3.1): log p_expert - log p_amateur on plausible ids.

    Plausible: p_expert >= alpha times the k-th largest p_expert; all else becomes -inf. k = 1 is
    the original contrastive decoding. An id forbidden in both (-inf) stays forbidden.
    """
    expert = expert_BV.log_softmax(-1)
    amateur = (amateur_BV / amateur_temperature).log_softmax(-1)
    kth = expert.topk(min(k, expert.shape[-1]), dim=-1).values[:, -1:]
    implausible = (expert < kth + math.log(alpha)) | expert.isneginf()
    return (expert - amateur).masked_fill(implausible, -torch.inf)


def penalise(logits_V: Tensor, written: Sequence[int], power: float) -> Tensor:
    """Log-probabilities [V] in which each id already written has p ** power for p.

    CTRL (arXiv:1909.05858, section 4.1) divides the logit itself; its effect then depends on a
    constant that a softmax does not see. A log-probability has no such constant.
    """
    logprobs = logits_V.log_softmax(-1)
    seen = torch.tensor(sorted(set(written)), dtype=torch.int64)
    logprobs[seen] *= power
    return logprobs


def repeats(written: Sequence[int], n: int) -> set[int]:
    """Ids that would complete an n-gram that was already written."""
    if len(written) < n:
        return set()
    last = tuple(written[len(written) - n + 1 :])
    return {
        written[i + n - 1]
        for i in range(len(written) - n + 1)
        if tuple(written[i : i + n - 1]) == last
    }


def distribution(
    logits_BV: Tensor, *, temperature: float, top_k: int | None, top_p: float
) -> Tensor:
    """Probabilities to draw from, float64 [B, V].

    Temperature 0 puts all mass on the largest logit. Top-p keeps the smallest set of most likely
    ids whose mass reaches `top_p`, never none.
    """
    logits = logits_BV.double()
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return probabilities / probabilities.sum(-1, keepdim=True)


def draw(probabilities_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Inverse-transform sampling: one uniform in [0, 1) a row -> ids int64 [B] of mass > 0."""
    cumulative = probabilities_BV.cumsum(-1)
    targets = uniforms_B[:, None] * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    last = probabilities_BV.shape[-1] - 1 - (probabilities_BV.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(ids, last)
