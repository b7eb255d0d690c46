from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from racm3.sequence.order import asked_order, context_order


@pytest.mark.parametrize("count", range(5))
def test_an_order_is_a_permutation_and_does_what_its_name_says(count):
    ranks = list(range(count))
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    assert context_order(count, "best_first", rng) == ranks
    assert context_order(count, "best_last", rng) == ranks[::-1]
    assert rng.bit_generator.state == state  # what is not shuffled draws nothing
    for _ in range(200):
        assert sorted(context_order(count, "shuffled", rng)) == ranks


def test_shuffled_orders_are_equally_likely():
    rng = np.random.default_rng(1)
    seen = Counter(tuple(context_order(3, "shuffled", rng)) for _ in range(6000))
    assert len(seen) == 6
    assert min(seen.values()) > 850


def test_a_generator_is_asked_as_it_was_trained():
    assert [asked_order(o) for o in ("best_first", "best_last", "shuffled")] == [
        "best_first",
        "best_last",
        "best_first",
    ]
