"""What a fit carries from step to step, and its way into checkpoints and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from racm3.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_folders,
    checkpoint_path,
    load_module_tensors,
    load_optimizer_tensors,
    module_tensors,
    optimizer_tensors,
    prune_checkpoints,
    read_checkpoint,
    valid_checkpoints,
    write_checkpoint,
)
from racm3.training.ranks import wait_for_ranks
from racm3.training.records import FitConfig, FitTask, HasState, LogRow, Stop
from racm3.training.sharding import whole_tensors
from racm3.training.tallies import Tally

_STEP = "step"
_BEST = "best"


@dataclass(kw_only=True, slots=True)
class Counters:
    """How far a run is; the names are those in a checkpoint's ``state.json``."""

    step: int = 0
    """Steps done."""
    flops: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    learning_rate: float = 0.0
    """Of the last step, like `grad_norm`."""
    grad_norm: float = 0.0
    best_step: int = 0
    best_loss: float | None = None
    bad_validations: int = 0
    """Validations since the best one."""
    sums: dict[str, Tally] = field(default_factory=dict)
    """Of what the task logs, over the steps since the last train row of the log."""
    stopped: Stop | None = None


class RunState:
    """Weights, optimiser, counters and log of one run, and the folder they are kept in.

    With a sharded model every method that saves must be called by every rank.
    """

    def __init__(
        self,
        task: FitTask,
        config: FitConfig,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        root: Path | None,
        *,
        rank: int,
        world_size: int,
    ) -> None:
        """Takes a run at its start.

        Args:
            task: Whose tensors are saved with the model's, where it has any (`HasState`).
            config: Kept in checkpoints: only an equal one may resume.
            model: Whose parameters are trained.
            optimizer: Over them.
            root: Folder of checkpoints, shared by all ranks; `None`: nothing is written.
            rank: Of this process; rank 0 writes.
            world_size: Processes.
        """
        self.task, self.config, self.root = task, config, root
        self.model, self.optimizer = model, optimizer
        self.rank, self.world_size = rank, world_size
        self.counters = Counters()
        self.log: list[LogRow] = []
        self._best: dict[str, Tensor] | None = None

    def keep_best(self) -> None:
        """Keeps the weights as they are: the best so far."""
        in_memory = self.root is None
        tensors = whole_tensors(module_tensors(self.model), keep=in_memory or self.rank == 0)
        if self.root is None:
            self._best = {name: value.clone() for name, value in tensors.items()}
        elif self.rank == 0:
            step, loss = self.counters.step, self.counters.best_loss
            write_checkpoint(
                self.root,
                prefix=_BEST,
                step=step,
                tensors={"model": tensors},
                state={"step": step, "loss": loss},
            )

    def save(self, root: Path) -> Path:
        """Writes a checkpoint of this step and removes old ones; returns its folder."""
        tensors = {
            "model": whole_tensors(module_tensors(self.model), keep=self.rank == 0),
            "optimizer": whole_tensors(optimizer_tensors(self.optimizer), keep=self.rank == 0),
        }
        if self.rank == 0:
            if isinstance(self.task, HasState):
                tensors["task"] = dict(self.task.state_dict())
            write_checkpoint(
                root, prefix=_STEP, step=self.counters.step, tensors=tensors, state=self._state()
            )
            self._prune(root)
        wait_for_ranks(self.world_size)
        return checkpoint_path(root, prefix=_STEP, step=self.counters.step)

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, where there is one.

        Raises:
            CheckpointError: Its configuration is another one, or none is whole.
        """
        if self.root is None or not checkpoint_folders(self.root, prefix=_STEP):
            return
        for checkpoint in valid_checkpoints(self.root, prefix=_STEP):
            if self._usable(checkpoint):
                self._load(checkpoint)
                return
        raise CheckpointError(
            f"No checkpoint under {self.root} is whole: remove the folder to start afresh."
        )

    def restore_best(self, bare: nn.Module) -> Path | None:
        """Loads the best weights into a module that is not sharded.

        Returns:
            The folder they were read from; `None` without a folder of checkpoints.
        """
        counters = self.counters
        if counters.best_loss is None:
            counters.best_step = counters.step
        if self.root is not None:
            prefix = _STEP if counters.best_loss is None else _BEST
            path = checkpoint_path(self.root, prefix=prefix, step=counters.best_step)
            best = read_checkpoint(path)
            bare.load_state_dict(dict(best.tensors["model"]))
            return best.path
        if self._best is not None:
            bare.load_state_dict(self._best)
        elif bare is not self.model:
            bare.load_state_dict(whole_tensors(module_tensors(self.model)))
        return None

    def _prune(self, root: Path) -> None:
        kept = checkpoint_folders(root, prefix=_STEP)[: self.config.keep_checkpoints]
        prune_checkpoints(root, prefix=_STEP, keep={path.name for path in kept})
        needed = {_best_path(root, self.counters.best_step).name}
        for path in kept[1:]:
            try:
                needed.add(_best_path(root, read_checkpoint(path).state["best_step"]).name)
            except CheckpointError:
                continue
        prune_checkpoints(root, prefix=_BEST, keep=needed)

    def _state(self) -> dict[str, Any]:
        return {
            **asdict(self.counters),
            "log": [asdict(row) for row in self.log],
            "config": _plain(self.config),
            "world_size": self.world_size,
        }

    def _usable(self, checkpoint: Checkpoint) -> bool:
        state = checkpoint.state
        if state["config"] != _plain(self.config):
            raise CheckpointError(
                f"{checkpoint.path} was written with another FitConfig: "
                "resume with the same one or use another folder."
            )
        if state["best_loss"] is None:
            return True
        try:
            read_checkpoint(_best_path(checkpoint.path.parent, state["best_step"]))
        except CheckpointError:
            return False
        return True

    def _load(self, checkpoint: Checkpoint) -> None:
        self.counters = Counters(**{f.name: checkpoint.state[f.name] for f in fields(Counters)})
        self.log = [LogRow(**row) for row in checkpoint.state["log"]]
        load_module_tensors(self.model, checkpoint.tensors["model"])
        load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])
        if isinstance(self.task, HasState):
            self.task.load_state_dict(checkpoint.tensors["task"])


def _best_path(root: Path, step: int) -> Path:
    return checkpoint_path(root, prefix=_BEST, step=step)


def _plain(config: FitConfig) -> Any:
    return json.loads(json.dumps(asdict(config)))
