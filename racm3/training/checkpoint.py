"""Checkpoints: safetensors and JSON in one folder, published whole or not at all.

A checkpoint is a folder::

    <root>/<prefix>-<step, 9 digits>/
        <part>.safetensors     one file a part (model, optimizer, ...)
        state.json             everything that is not a tensor
        index.json             sha256 and size of every other file: what makes the folder believable

It is written under a temporary name, every file and the folder are fsynced, and then it is renamed.
Reading verifies every digest before a byte is used; a folder that does not verify is *torn*.
Nothing here is pickled, so a checkpoint cannot carry code. The same content gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from racm3.training.sharding import sharded_like

_LOGGER = logging.getLogger(__name__)
_INDEX = "index.json"
_STATE = "state.json"
_SUFFIX = ".safetensors"


class CheckpointError(ValueError):
    """A checkpoint folder is missing, torn, or belongs to something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What one verified folder held."""

    path: Path
    """The folder."""
    step: int
    """Steps that were done when it was written (the number in the folder's name)."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Part -> name -> tensor, on the CPU."""
    state: Mapping[str, Any]
    """The JSON object that was saved beside the tensors."""


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialises tensors of any device as safetensors.

    Tensors that share memory (tied weights) are stored once each: the format allows no sharing.

    Args:
        tensors: Name -> tensor of any shape and dtype.

    Returns:
        Bytes that depend on the names and values only.
    """
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        pointer = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if pointer in seen else value
        seen.add(pointer)
    return bytes(save_safetensors(plain))


def write_checkpoint(
    root: Path,
    *,
    prefix: str,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> Path:
    """Publishes one checkpoint atomically and durably.

    Args:
        root: Folder of checkpoints; made when missing.
        prefix: Kind of checkpoint, the first part of the folder's name.
        step: Steps done, >= 0. A folder of the same prefix and step is replaced.
        tensors: Part -> name -> tensor; each part becomes ``<part>.safetensors``.
        state: Anything JSON can hold; floats survive to the bit.

    Returns:
        The folder, complete and fsynced.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = checkpoint_path(root, prefix=prefix, step=step)
    draft = root / f".draft-{final.name}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    files = {f"{part}{_SUFFIX}": tensors_to_bytes(values) for part, values in tensors.items()}
    files[_STATE] = json.dumps(state, sort_keys=True).encode()
    index = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in files.items()
    }
    files[_INDEX] = json.dumps(index, sort_keys=True, indent=1).encode()
    for name, content in files.items():
        _write_durably(draft / name, content)
    _fsync_folder(draft)
    if final.exists():
        shutil.rmtree(final)
    draft.rename(final)
    _fsync_folder(root)
    return final


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads one folder after verifying every file in it.

    Args:
        path: A folder made by `write_checkpoint`.

    Returns:
        The checkpoint, its tensors on the CPU.

    Raises:
        CheckpointError: A file is missing, has other bytes than the index says, or does not parse.
    """
    try:
        index = json.loads((path / _INDEX).read_bytes())
        files = {name: (path / name).read_bytes() for name in index}
        for name, content in files.items():
            if hashlib.sha256(content).hexdigest() != index[name]["sha256"]:
                raise CheckpointError(f"{path / name} does not have the bytes its index promises.")
        state = json.loads(files.pop(_STATE))
        step = int(path.name.rpartition("-")[2])
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: {error}") from error
    tensors = {name.removesuffix(_SUFFIX): load_safetensors(raw) for name, raw in files.items()}
    return Checkpoint(path=path, step=step, tensors=tensors, state=state)


def checkpoint_path(root: Path, *, prefix: str, step: int) -> Path:
    """Returns the folder of one checkpoint, there or not."""
    return root / f"{prefix}-{step:09d}"


def checkpoint_folders(root: Path, *, prefix: str) -> list[Path]:
    """Lists the published folders of one kind, newest (largest step) first."""
    if not root.is_dir():
        return []
    found = [path for path in root.glob(f"{prefix}-*") if path.name[len(prefix) + 1 :].isdigit()]
    return sorted(found, key=lambda path: path.name, reverse=True)


def valid_checkpoints(root: Path, *, prefix: str) -> Iterator[Checkpoint]:
    """Yields the checkpoints that verify, newest first; torn ones are logged and skipped."""
    for path in checkpoint_folders(root, prefix=prefix):
        try:
            yield read_checkpoint(path)
        except CheckpointError as error:
            _LOGGER.warning("Skipping a torn checkpoint: %s", error)


def prune_checkpoints(root: Path, *, prefix: str, keep: set[str]) -> None:
    """Removes the folders of one kind whose names are not in `keep`, and abandoned drafts."""
    for path in checkpoint_folders(root, prefix=prefix):
        if path.name not in keep:
            shutil.rmtree(path)
    for draft in root.glob(f".draft-{prefix}-*"):
        shutil.rmtree(draft, ignore_errors=True)


def module_tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and persistent buffers by name, not copied."""
    return {name: value.detach() for name, value in module.state_dict().items()}


def load_module_tensors(module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restores what `module_tensors` returned, whole; a sharded module takes its share."""
    own = module.state_dict()
    state = {n: sharded_like(own[n], v) if n in own else v for n, v in tensors.items()}
    module.load_state_dict(state)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flattens an optimizer's per-parameter state to ``<parameter index>.<key>`` -> tensor.

    Hyper-parameters are left out: they come from the configuration and the schedule.
    """
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores what `optimizer_tensors` flattened, whole, keeping the optimizer's own groups.

    State of the shape of a sharded parameter is split as the parameter is.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        parameter: Tensor = parameters[int(index)]
        same = value.shape == parameter.shape
        entry = state.setdefault(int(index), {})
        entry[key] = sharded_like(parameter, value) if same else value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
