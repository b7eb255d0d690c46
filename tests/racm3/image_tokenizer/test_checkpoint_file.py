from __future__ import annotations

import argparse
import collections
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from racm3.image_tokenizer import read_state_dict

STATE = {"encoder.weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


class _Trap:
    """Unpickled for real, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.mark)!r}, 'w')",)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[n], STATE[n]) for n in STATE)


@pytest.mark.parametrize(
    "held",
    [
        STATE,
        {"state_dict": STATE, "global_step": 7},
        {"model": STATE, "optimizer": {"state": {}}},
        {"model": {"bias": torch.zeros(2)}, "ema": STATE},
    ],
    ids=["plain", "state_dict", "model", "ema before model"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_are_found_where_trainers_keep_them(held, legacy, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save(held, path, _use_new_zipfile_serialization=not legacy)
    assert same(read_state_dict(path))


def test_safetensors_are_read(tmp_path):
    save_file(STATE, tmp_path / "vq.safetensors")
    assert same(read_state_dict(tmp_path / "vq.safetensors"))


def test_objects_beside_the_tensors_are_neither_made_nor_called(tmp_path):
    """As in taming's published files: callbacks by class, arguments, settings as dictionaries."""
    settings = collections.defaultdict(list, {"lr": [1e-4]})
    beside = {
        "callbacks": {threading.Timer: {"best": 1.0}},
        "args": argparse.Namespace(vq_model="VQ-16"),
        "hparams": types.SimpleNamespace(deep=settings),
        "trap": _Trap(tmp_path / "sprung"),
    }
    torch.save(beside | {"state_dict": STATE}, tmp_path / "last.ckpt")
    before = torch.serialization.get_safe_globals()
    assert same(read_state_dict(tmp_path / "last.ckpt"))
    assert torch.serialization.get_safe_globals() == before
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_trap_in_place_of_a_state_dict_is_refused(legacy, tmp_path):
    torch.save(
        {"state_dict": _Trap(tmp_path / "sprung")},
        tmp_path / "last.ckpt",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(ValueError, match=r"holds no state dict|cannot be read"):
        read_state_dict(tmp_path / "last.ckpt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["vq.safetensors", "vq.ckpt"])
def test_what_is_no_checkpoint_is_refused_in_a_sentence(name: str, tmp_path):
    path = tmp_path / name
    with pytest.raises(ValueError, match="is no file"):
        read_state_dict(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=f"{name}' cannot be read") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state_dict(tmp_path / "vq.pt")
