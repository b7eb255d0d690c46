"""Whether retrieval finds what it should: recall among the first k."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from racm3.metrics.score import Score, share_score


def recall_at_k(
    hits: Sequence[Sequence[str]], relevant: Sequence[AbstractSet[str]], k: int
) -> Score:
    """Share of queries with a relevant document among the first k hits.

    Args:
        hits: For each query the documents found, best first; fewer than k count as they are.
        relevant: For each query the documents that are right, at least one.
        k: How many hits count, at least 1.

    Returns:
        The score ``recall_at_{k}`` in [0, 1].

    Raises:
        ValueError: The lists differ in length, k is below 1, or a query has nothing to be found.
    """
    if k < 1:
        raise ValueError(f"recall at {k}: k must be at least 1.")
    if len(hits) != len(relevant):
        raise ValueError(f"recall: {len(hits)} queries have hits, {len(relevant)} what is right.")
    if not all(relevant):
        raise ValueError("recall: a query has no relevant document; leave it out.")
    found = [not right.isdisjoint(some[:k]) for some, right in zip(hits, relevant, strict=True)]
    return share_score(
        [float(one) for one in found],
        name=f"recall_at_{k}",
        higher_is_better=True,
        protocol=f"share of queries with a counterpart among the first {k} contexts",
    )
