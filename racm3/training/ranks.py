"""What the ranks of one fit do together: sums, agreement, and when gradients are exchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from torch import nn

T = TypeVar("T")

_DROPOUT_PURPOSE = 0x6669_7421
"""Keeps the noise of dropout apart from other streams made of the same seed, step and rank."""


def sum_over_ranks(
    values: Sequence[float], *, world_size: int, device: torch.device
) -> list[float]:
    """Sums each of the values over the ranks, which must give equally many; in float64."""
    if world_size == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total.tolist()]


def of_rank_zero(
    metrics: dict[str, float], *, world_size: int, device: torch.device
) -> dict[str, float]:
    """Gives every rank rank 0's numbers; all ranks must name the same ones."""
    if world_size == 1:
        return metrics
    names = sorted(metrics)
    numbers = torch.tensor([metrics[n] for n in names], dtype=torch.float64, device=device)
    torch.distributed.broadcast(numbers, src=0)
    return dict(zip(names, map(float, numbers.tolist()), strict=True))


def gather_on_rank_zero(value: T, *, rank: int, world_size: int) -> list[T] | None:
    """What each rank gave, in the order of ranks, on rank 0; `None` on the others."""
    if world_size == 1:
        return [value]
    found: list[Any] | None = [None] * world_size if rank == 0 else None
    torch.distributed.gather_object(value, found, dst=0)
    return found


def wait_for_ranks(world_size: int) -> None:
    """Returns once every rank has come here."""
    if world_size > 1:
        torch.distributed.barrier()


@contextmanager
def gradient_exchange(module: nn.Module, *, now: bool) -> Iterator[None]:
    """Wraps forward and backward pass of a micro-batch; DDP averages gradients only when `now`.

    A sharded module averages at every micro-batch: gradients that it kept back would be whole ones.
    """
    if not now and isinstance(module, nn.parallel.DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield


def noise_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout of one step and rank, in [0, 2**63)."""
    words = np.random.SeedSequence((_DROPOUT_PURPOSE, seed, step, rank)).generate_state(
        2, np.uint32
    )
    return int(words[0]) << 31 ^ int(words[1])


@contextmanager
def own_noise() -> Iterator[None]:
    """Leaves torch's global generators as they were: dropout can draw from no other."""
    with torch.random.fork_rng():
        yield
