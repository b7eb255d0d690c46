"""The optimiser of every fit: AdamW, what decays, clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from racm3.training.records import FitConfig, FitTask, HasParameterGroups
from racm3.training.sharding import whole


def adamw(task: FitTask, model: nn.Module, config: FitConfig) -> torch.optim.AdamW:
    """Makes AdamW over what is trained; matrices decay, vectors do not, unless the task says.

    Args:
        task: Asked for groups of its own (`HasParameterGroups`).
        model: Whose parameters are trained; sharded already where it is going to be.
        config: Rate, betas, decay.
    """
    if isinstance(task, HasParameterGroups):
        groups = task.parameter_groups(config.weight_decay)
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group, times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scales gradients to a norm of at most `limit`; returns the norm before.

    The norm is that of the whole gradient, on every rank, sharded or not; it is not finite when
    any gradient is not.
    """
    return float(whole(nn.utils.clip_grad_norm_(parameters, limit)))
