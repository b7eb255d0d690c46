from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.training.epoch_order import EpochOrder, keyed_generator

GROUPS = ["flags"] * 10 + [None] * 20 + ["rare"] * 4


def epoch(order, number):
    located = [order.locate(number * order.length + i) for i in range(order.length)]
    assert {e for e, _ in located} == {number}
    return [index for _, index in located]


@given(seed=st.integers(0, 2**40), size=st.integers(1, 50))
def test_every_epoch_is_a_permutation(seed, size):
    order = EpochOrder((), {}, size=size, seed=seed)
    assert [sorted(epoch(order, e)) for e in (0, 1, 5)] == [list(range(size))] * 3


def test_epochs_and_seeds_differ():
    order = EpochOrder((), {}, size=30, seed=1)
    orders = [epoch(order, 0), epoch(order, 1), epoch(EpochOrder((), {}, size=30, seed=2), 0)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_weights_say_how_often_a_group_is_seen():
    order = EpochOrder(GROUPS, {"flags": 2.5, "rare": 0.25}, size=len(GROUPS), seed=0)
    assert order.length == 25 + 20 + 1
    seen = [Counter(epoch(order, e)) for e in range(40)]
    assert all(sum(c[i] for i in range(10)) == 25 for c in seen)
    assert {c[i] for c in seen for i in range(10)} == {2, 3}
    assert all(c[i] == 1 for c in seen for i in range(10, 30))
    assert {i for c in seen for i in range(30, 34) if c[i]} == {30, 31, 32, 33}


def test_weight_0_leaves_a_group_out():
    order = EpochOrder(GROUPS, {"flags": 0}, size=len(GROUPS), seed=0)
    assert sorted(epoch(order, 0)) == list(range(10, 34))


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="'flag', but no example"):
        EpochOrder(GROUPS, {"flag": 2.0}, size=len(GROUPS), seed=0)
    with pytest.raises(ValueError, match="leave no example"):
        EpochOrder(["a"], {"a": 0.0}, size=1, seed=0)


def test_generators_are_their_own():
    keys = [(1, 1, 5), (1, 2, 5), (2, 1, 5), (1, 1, 6), (1, 1, 5, 0)]
    drawn = [tuple(keyed_generator(*key).random(4)) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert np.array_equal(keyed_generator(1, 1, 5).random(4), drawn[0])
