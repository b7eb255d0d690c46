"""In which order contexts are put in front of the main document.

The paper does not say; the public code shuffles. In a causal model the order decides which context
stands beside the main document.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

ContextOrder = Literal["best_first", "best_last", "shuffled"]


def context_order(count: int, order: ContextOrder, generator: np.random.Generator) -> list[int]:
    """Ranks 0..count-1 (0 is the best) in the order fed.

    Args:
        count: Contexts, at least 0.
        order: `best_last` puts the best beside the main document.
        generator: Asked only where the order is `shuffled`, once.
    """
    if order == "shuffled":
        drawn: list[int] = generator.permutation(count).tolist()
        return drawn
    return list(range(count)) if order == "best_first" else list(range(count))[::-1]


def asked_order(trained: ContextOrder) -> ContextOrder:
    """How a generator that was trained in one order is asked: the same; best first after any."""
    return "best_first" if trained == "shuffled" else trained
