"""Which channels of the residual stream an induction start gives a meaning of their own."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["InductionBlocks", "channels_of", "induction_blocks"]

_HEADS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class InductionBlocks:
    """Slices of the channels, in this order; see `racm3.generator.induction_start`."""

    own: slice
    next: slice
    sink: slice
    slot: slice
    code: slice
    left: slice
    above: slice
    above_next: slice
    copied: slice
    free: slice
    """All the others."""


def induction_blocks(*, width: int, heads: int, num_slots: int) -> InductionBlocks:
    """The blocks of a stream of `width` channels.

    A head compares a place (half of its channels), a code (three eighths) and a sink (one).

    Raises:
        ValueError: They do not fit.
    """
    head = width // heads
    place, code = head // 2, 3 * head // 8
    sizes = {"own": place, "next": place, "sink": 1, "slot": num_slots}
    sizes |= dict.fromkeys(("code", "left", "above", "above_next", "copied"), code)
    slices, start = {}, 0
    for name, size in sizes.items():
        slices[name] = slice(start, start + size)
        start += size
    fits = not head % 8 and place + num_slots < head and start < width  # some must stay free
    if heads < _HEADS or not fits:
        raise ValueError(
            f"An induction start needs {_HEADS} heads or more, each of a multiple of 8 channels, "
            f"and more than {start} channels in all, not {heads} heads of {head}: take other "
            "heads, a larger width, or none."
        )
    return InductionBlocks(**slices, free=slice(start, width))


def channels_of(block: slice) -> int:
    """Number of channels of a block."""
    return int(block.stop) - int(block.start)
