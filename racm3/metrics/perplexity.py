"""Teacher-forced perplexity of image and caption tokens.

Image: codes given contexts and caption, contexts retrieved by the caption. Caption: tokens (without
``<eoss>``) infilled given contexts and image, contexts retrieved by the image. exp of the mean NLL
over all tokens of all examples, so that long captions count for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from racm3.document import DocumentTokens
from racm3.metrics.score import Score
from racm3.sequence.layout import Layout
from racm3.sequence.order import ContextOrder
from racm3.training.generator import measured_nll
from racm3.training.stream import Example, evaluation_batch


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleNLL:
    """What each example came to, in the order given; arrays [n] for bootstraps over examples."""

    nll: NDArray[np.float64]
    """Sum of NLL over the measured tokens, nats."""
    tokens: NDArray[np.float64]
    """Number of measured tokens; 0 for an empty caption."""

    @property
    def perplexity(self) -> float:
        """exp(sum of sums / sum of tokens)."""
        return float(np.exp(self.nll.sum() / self.tokens.sum()))


def example_nll(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    layout: Layout,
    task: Literal["image", "caption"],
    k: int,
    contexts: Sequence[Sequence[DocumentTokens]] | None = None,
    order: ContextOrder = "best_first",
    seed: int = 0,
    batch_size: int = 32,
) -> ExampleNLL:
    """Measures every example.

    Args:
        model: A `Generator`, in evaluation mode.
        examples: Held out.
        layout: Of the sequences.
        task: What is measured.
        k: Most contexts.
        contexts: Instead of the retrieved ones, ranked, one list an example (wrong ones, say).
        order: Of the contexts.
        seed: Of `shuffled` contexts.
        batch_size: Rows of one forward pass.
    """
    nll: list[NDArray[np.float64]] = []
    tokens: list[NDArray[np.float64]] = []
    for start in range(0, len(examples), batch_size):
        part = slice(start, start + batch_size)
        given = None if contexts is None else contexts[part]
        batch = evaluation_batch(
            examples[part], layout=layout, task=task, k=k, contexts=given, order=order, seed=seed
        )
        sums, counts = measured_nll(model, batch)
        nll.append(sums.numpy())
        tokens.append(counts.numpy())
    return ExampleNLL(nll=np.concatenate(nll), tokens=np.concatenate(tokens))


def perplexity_score(
    measured: ExampleNLL,
    *,
    task: Literal["image", "caption"],
    generator: np.random.Generator,
    resamples: int = 1000,
) -> Score:
    """Perplexity with a 95 % percentile interval by bootstrap over examples."""
    n = len(measured.nll)
    picks = generator.integers(0, n, (resamples, n))
    ratios = measured.nll[picks].sum(axis=1) / np.maximum(measured.tokens[picks].sum(axis=1), 1)
    low, high = np.exp(np.percentile(ratios, [2.5, 97.5]))
    return Score(
        name=f"{task}_perplexity",
        value=measured.perplexity,
        unit="",
        higher_is_better=False,
        n=n,
        low=float(low),
        high=float(high),
        protocol="exp of the mean NLL of the tokens, teacher-forced; bootstrap over examples",
    )
