"""State dicts out of other people's checkpoint files, without running any of their code.

safetensors hold tensors only. torch's files are pickles: they are read with ``weights_only``, and
whatever else a file names beside tensors (training frameworks leave their callbacks there) is read
as an empty stand-in, so that nothing of it is imported or called.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_NESTED = ("ema", "model", "state_dict")
"""Keys under which checkpoints keep their state dict; the first one found is taken, since the
averaged weights are the published ones."""

_FAILURES = (
    *(OSError, EOFError, RuntimeError, TypeError, ValueError),
    *(pickle.UnpicklingError, SafetensorError),
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint, on the CPU.

    Args:
        path: A safetensors file, or a file of `torch.save` (.ckpt, .pt, .pth, .bin) that holds a
            state dict as it is or under ``ema``, ``model`` or ``state_dict``.

    Raises:
        ValueError: There is no such file, it cannot be read so, or it holds no state dict.
    """
    if not path.is_file():
        raise ValueError(f"The checkpoint '{path}' is no file: give an existing weights file.")
    try:
        held = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except _FAILURES as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"The checkpoint '{path}' cannot be read ({reason}): give a safetensors file, or one "
            "of torch.save that holds tensors."
        ) from error
    return _state_dict(held, path)


def _load_torch(path: Path) -> Any:
    if not zipfile.is_zipfile(path):  # written by torch < 1.6: no list of what it names
        return torch.load(path, map_location="cpu", weights_only=True)
    named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    stand_ins: list[Any] = [(_stand_in(), name) for name in named]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _stand_in() -> type:
    """A class whose instances are empty dictionaries, whatever they are made of.

    torch's reader fills in items and attributes of an `OrderedDict`, and of hardly anything else.
    """

    class StandIn:
        def __new__(cls, *_: Any, **__: Any) -> Any:
            return OrderedDict()

    return StandIn


def _state_dict(held: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(held, Mapping):
        for key in _NESTED:
            if isinstance(held.get(key), Mapping):
                held = held[key]
                break
        tensors = {str(n): value for n, value in held.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ValueError(
        f"The checkpoint '{path}' holds no state dict: neither tensors by name nor any under "
        f"{', '.join(_NESTED)}."
    )
