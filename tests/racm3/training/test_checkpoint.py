import json

import pytest
import torch
from torch import nn

from racm3.training.checkpoint import (
    CheckpointError,
    checkpoint_folders,
    load_optimizer_tensors,
    optimizer_tensors,
    prune_checkpoints,
    read_checkpoint,
    tensors_to_bytes,
    valid_checkpoints,
    write_checkpoint,
)


def write(root, step=3, value=1.5):
    tensors = {"model": {"b": torch.full((2, 3), value), "a": torch.arange(4)}}
    return write_checkpoint(root, prefix="step", step=step, tensors=tensors, state={"x": 0.1})


def test_what_was_written_is_read(tmp_path):
    read = read_checkpoint(write(tmp_path))
    assert read.step == 3
    assert read.state == {"x": 0.1}
    assert torch.equal(read.tensors["model"]["b"], torch.full((2, 3), 1.5))
    assert read.tensors["model"]["a"].dtype == torch.int64
    assert not list(tmp_path.glob(".draft*"))


def test_same_content_same_bytes(tmp_path):
    first, second = write(tmp_path / "1"), write(tmp_path / "2")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_nothing_is_pickled(tmp_path):
    assert {file.suffix for file in write(tmp_path).iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "index.json"])
def test_any_flipped_byte_is_found(tmp_path, name):
    path = write(tmp_path)
    content = bytearray((path / name).read_bytes())
    position = content.index(b'"sha256": "') + 11 if name == "index.json" else len(content) // 2
    content[position] ^= 1
    (path / name).write_bytes(bytes(content))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_a_missing_file_is_found(tmp_path):
    path = write(tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="complete"):
        read_checkpoint(path)


def test_valid_checkpoints_are_newest_first_without_the_torn(tmp_path):
    for step in (1, 5, 10):
        write(tmp_path, step=step)
    (tmp_path / "step-000000005" / "state.json").write_text("{}")
    assert [c.step for c in valid_checkpoints(tmp_path, prefix="step")] == [10, 1]
    prune_checkpoints(tmp_path, prefix="step", keep={"step-000000010"})
    assert [p.name for p in checkpoint_folders(tmp_path, prefix="step")] == ["step-000000010"]
    assert checkpoint_folders(tmp_path / "none", prefix="step") == []


def test_a_step_written_again_is_replaced(tmp_path):
    write(tmp_path)
    assert float(read_checkpoint(write(tmp_path, value=2.0)).tensors["model"]["b"][0, 0]) == 2.0


def test_tied_tensors_are_stored_once_each():
    from safetensors.torch import load

    shared = torch.arange(3.0)
    read = load(tensors_to_bytes({"x": shared, "y": shared}))
    assert torch.equal(read["x"], read["y"])


def test_an_optimizer_goes_on_as_if_it_had_not_stopped():
    def run(steps, resume_at=None):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        for step in range(steps):
            if step == resume_at:
                saved = {k: v.clone() for k, v in optimizer_tensors(optimizer).items()}
                optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
                load_optimizer_tensors(optimizer, saved)
            optimizer.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        return model.weight

    assert torch.equal(run(6), run(6, resume_at=3))


def test_the_index_names_every_file(tmp_path):
    path = write(tmp_path)
    names = set(json.loads((path / "index.json").read_text()))
    assert names == {file.name for file in path.iterdir()} - {"index.json"}
