"""In which order examples are seen: epoch after epoch, each a permutation keyed by (seed, epoch).

A group of weight w takes part in every epoch with round(w * size) entries: each of its examples
floor(entries / size) times, and the rest drawn without replacement, anew each epoch. So an epoch
has the same length every time, and a position of the endless stream tells its epoch by division.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Series
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ORDER_PURPOSE = 0


class EpochOrder:
    """The order of `size` examples.

    The latest permutations are kept (8 bytes an entry); a group of every example is looked at only
    when there are weights.
    """

    def __init__(
        self, groups: Series[str | None], weights: Mapping[str, float], *, size: int, seed: int
    ) -> None:
        """Takes the group of each example (ignored, and may be empty, without weights)."""
        self._key = (size, tuple(sorted(weights.items())), tuple(groups) if weights else ())
        self._seed = seed
        self._epochs = {0: _order(seed, 0, *self._key)}

    @property
    def length(self) -> int:
        """Entries of an epoch."""
        return len(self._epochs[0])

    def locate(self, position: int) -> tuple[int, int]:
        """Epoch and example index of a position, from 0, of the endless stream."""
        epoch, offset = divmod(position, self.length)
        if epoch not in self._epochs:
            self._epochs[epoch] = _order(self._seed, epoch, *self._key)
        return epoch, int(self._epochs[epoch][offset])


def keyed_generator(seed: int, purpose: int, *counters: int) -> np.random.Generator:
    """A generator of its own for (seed, purpose, up to three counters): Philox, keyed and counted.

    All values are 0 or above; purpose 0 is taken by the order of epochs. A purpose always comes
    with the same number of counters: leading zeros do not count.
    """
    counter = np.zeros(4, dtype=np.uint64)
    counter[4 - len(counters) :] = counters
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


@lru_cache(maxsize=8)
def _order(
    seed: int,
    epoch: int,
    size: int,
    weights: tuple[tuple[str, float], ...],
    groups: tuple[str | None, ...],
) -> NDArray[np.int64]:
    """Example indices in the order of an epoch.

    Raises:
        ValueError: when a weighted group has no example, or the weights leave none.
    """
    generator = keyed_generator(seed, _ORDER_PURPOSE, epoch)
    if not weights:
        return generator.permutation(size)
    weighted = {group for group, _ in weights}
    entries = [np.array([i for i, g in enumerate(groups) if g not in weighted], dtype=np.int64)]
    for group, weight in weights:
        members = np.array([i for i, g in enumerate(groups) if g == group], dtype=np.int64)
        if not len(members):
            raise ValueError(f"group_weights names {group!r}, but no example is of that group")
        copies, rest = divmod(round(weight * len(members)), len(members))
        entries += [np.tile(members, copies), generator.permutation(members)[:rest]]
    order = generator.permutation(np.concatenate(entries))
    if not len(order):
        raise ValueError("group_weights leave no example: give one group a weight above 0")
    return order
