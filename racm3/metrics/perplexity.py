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
from racm3.metrics.bootstrap import Resampling, percentiles
from racm3.metrics.score import Score
from racm3.sequence.layout import Layout
from racm3.sequence.order import ContextOrder
from racm3.training.evaluation import evaluation_batch
from racm3.training.examples import Example
from racm3.training.generator import measured_nll


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
    measured: ExampleNLL, *, task: Literal["image", "caption"], resampling: Resampling
) -> Score:
    """Perplexity with a 95 % percentile interval by bootstrap over clusters of examples."""
    drawn = resampling.sums(measured.nll) / np.maximum(resampling.sums(measured.tokens), 1)
    low, high = percentiles(drawn)
    return Score(
        name=f"{task}_perplexity",
        value=measured.perplexity,
        unit="",
        higher_is_better=False,
        n=len(measured.nll),
        low=float(np.exp(low)),
        high=float(np.exp(high)),
        protocol=f"exp of the mean NLL of the tokens, teacher-forced; {resampling.said}",
    )


def bits_score(
    measured: ExampleNLL,
    extent: NDArray[np.float64],
    *,
    task: Literal["image", "caption"],
    resampling: Resampling,
) -> Score:
    """The same NLL in bits a pixel, or a byte of caption: whatever the tokenizer, one unit.

    Args:
        measured: Of the examples, [n].
        extent: Of each example: pixels of its image, or UTF-8 bytes that its measured tokens spell,
            [n]; not all 0.
        task: What was measured.
        resampling: Of the examples.

    Raises:
        ValueError: Lengths differ, or there is nothing that was measured.
    """
    if len(extent) != len(measured.nll) or not extent.sum() > 0:
        raise ValueError(
            f"bits_score: {len(extent)} extents, {extent.sum():g} in all, for "
            f"{len(measured.nll)} examples."
        )
    nats = np.maximum(resampling.sums(extent), 1.0) * np.log(2.0)
    low, high = percentiles(resampling.sums(measured.nll) / nats)
    name, said = _BITS[task]
    return Score(
        name=name,
        value=float(measured.nll.sum() / np.log(2.0) / extent.sum()),
        unit="bit",
        higher_is_better=False,
        n=len(measured.nll),
        low=low,
        high=high,
        protocol=f"{said}; {resampling.said}",
    )


_BITS = {
    "image": (
        "bits_per_pixel",
        "NLL of the image codes over the pixels of the normalised image, teacher-forced; counts "
        "the codes only, not what the image tokenizer lost",
    ),
    "caption": (
        "bits_per_byte",
        "NLL of the caption's tokens over the UTF-8 bytes that they spell, teacher-forced",
    ),
}
"""Name and protocol."""
