"""FSDP2: parameters, gradients and optimiser state, each split over the ranks.

Checkpoints hold whole tensors, so that they load on any number of ranks, sharded or not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn


def shard_blocks(model: nn.Module, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Shards a copy of a model over all ranks: each block by itself, everything else together.

    Give it to `racm3.training.fit.fit` as `wrap`. The model itself goes to the CPU, where it waits
    for the best weights: the device holds shards only.

    Args:
        model: With a `ModuleList` called ``blocks``; equal on every rank.
        dtype: Blocks compute in it (``torch.bfloat16``), gradients are then averaged in float32;
            `None` = in the type of the parameters. Shards and optimiser state keep that type.

    Returns:
        The sharded copy, on the device where the model was.

    Raises:
        ValueError: The model has no ``blocks``.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32
    )
    sharded = copy.deepcopy(model.cpu())
    blocks = getattr(sharded, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(f"{type(model).__name__} has no list of blocks to shard by.")
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(sharded, mesh=mesh, mp_policy=policy)
    return sharded


def trained_module(bare: nn.Module, wrapped: nn.Module) -> nn.Module:
    """The module whose parameters are trained: `bare` inside DDP, else what wraps it."""
    return bare if next(bare.parameters()) is next(wrapped.parameters()) else wrapped


def whole(value: Tensor) -> Tensor:
    """The tensor, gathered from all ranks where it is sharded: every rank must call."""
    gather: Any = getattr(value, "full_tensor", None)
    gathered: Tensor = value if gather is None else gather()
    return gathered


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Gathers tensors of any kind by name, in the order of names; every rank must call.

    Args:
        tensors: Name -> tensor; those that are not sharded are returned as they are.
        keep: False: take part in gathering and return nothing, so that one rank alone holds all.

    Returns:
        Name -> whole tensor; gathered ones are on the CPU.
    """
    kept: dict[str, Tensor] = {}
    for name, value in sorted(tensors.items()):
        full = whole(value)
        if keep:
            kept[name] = full if full is value else full.cpu()
    return kept


def sharded_like(reference: Tensor, value: Tensor) -> Tensor:
    """This rank's share of a whole tensor that every rank has, split as `reference` is."""
    mesh: Any = getattr(reference, "device_mesh", None)
    if mesh is None:
        return value
    from torch.distributed.tensor import distribute_tensor

    placements: Any = reference.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(reference.device), mesh, placements, src_data_rank=None)
