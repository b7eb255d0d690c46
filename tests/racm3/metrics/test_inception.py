"""FID's network with random weights, saved in pytorch-fid's layout."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.models import inception as blocks

from racm3.metrics.inception import INCEPTION_DIM, Inception, load_inception


@pytest.fixture(scope="module")
def state():
    """torchvision's names, 1008 classes, no auxiliary head, no counters."""
    torch.manual_seed(0)
    model = blocks.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)


def average(x, **options):
    return functional.avg_pool2d(x, **options, count_include_pad=False)


def largest(x, **options):
    return functional.max_pool2d(x, **options)


def test_features_are_those_of_torchvisions_network_with_other_pools(
    state, images, monkeypatch, tmp_path
):
    torch.save(state, tmp_path / "weights.pth")
    ours = load_inception(tmp_path / "weights.pth").encode_images(images, batch_size=2)
    plain = blocks.Inception3(num_classes=1008, aux_logits=False, init_weights=False).eval()
    plain.load_state_dict(state, strict=False)
    plain.fc = torch.nn.Identity()

    def pools(average_pool):
        return SimpleNamespace(
            avg_pool2d=average_pool, max_pool2d=functional.max_pool2d, relu=functional.relu
        )

    monkeypatch.setattr(blocks, "F", pools(average))
    plain.Mixed_7c.register_forward_pre_hook(lambda *_: setattr(blocks, "F", pools(largest)))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0
    pixels = functional.interpolate(pixels, size=(299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        truth = plain(pixels * 2.0 - 1.0).numpy()
    assert ours.shape == (3, INCEPTION_DIM)
    assert ours.std() > 0
    np.testing.assert_allclose(ours, truth, rtol=1e-4, atol=1e-5)


def test_a_file_with_counters_is_the_same_network(state, images):
    counters = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(7)
        for name in state
        if name.endswith("running_mean")
    }
    one, other = (Inception(s).encode_images(images[:1]) for s in (state, state | counters))
    np.testing.assert_array_equal(one, other)
    assert Inception(state).encode_images(images[:0]).shape == (0, INCEPTION_DIM)


def test_other_files_are_refused(state, tmp_path):
    path = tmp_path / "weights.pth"
    head = "fc.weight"
    for content, said in (
        ({}, "holds no state dict"),
        ({k: v for k, v in state.items() if k != head}, f"{head} is missing"),
        (state | {"more": torch.zeros(1)}, "more is no weight"),
        (state | {head: torch.zeros(1000, 2048)}, r"shape \[1000, 2048\], not \[1008, 2048\]"),
        ([1, 2], "holds no state dict"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=said):
            load_inception(path)


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_nothing_but_tensors_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Trap()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    (tmp_path / "c.pth").write_bytes(b"no pickle")
    for name, said in (("a", "holds no state dict"), ("b", "cannot be read"), ("c", "cannot be")):
        with pytest.raises(ValueError, match=said):
            load_inception(tmp_path / f"{name}.pth")
    assert not (tmp_path / "trapped").exists()
