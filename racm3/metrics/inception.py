"""Inception features that FID is measured on, from a weights file in pytorch-fid's layout.

FID's network is the Inception-v3 of TensorFlow's archive inception-2015-12-05, which differs from
torchvision's in its pooling branches: averages leave out the padding, and the last block takes the
maximum. The weights that the field uses are pytorch-fid's `pt_inception-2015-12-05` (Seitzer,
github.com/mseitzer/pytorch-fid): torchvision's names, 1008 classes, no auxiliary head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import inception as blocks

from racm3.image_tokenizer.checkpoint_file import read_state_dict

INCEPTION_DIM = 2048
"""Features of the last average pooling."""
_SIDE, _CLASSES = 299, 1008
_COUNTERS = "num_batches_tracked"
"""Buffers of batch normalisation that inference does not read; older files lack them."""


class _AverageBranch:
    """A block whose pooling branch averages over what is there, not over the padding."""

    branch_pool: nn.Module

    def _forward(self, x: Tensor) -> list[Tensor]:
        convolved: list[Tensor] = super()._forward(x)[:-1]  # type: ignore[misc]
        return [*convolved, self.branch_pool(self._pool(x))]

    def _pool(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class _BlockA(_AverageBranch, blocks.InceptionA):  # type: ignore[misc]
    """35 x 35."""


class _BlockC(_AverageBranch, blocks.InceptionC):  # type: ignore[misc]
    """17 x 17."""


class _BlockE(_AverageBranch, blocks.InceptionE):  # type: ignore[misc]
    """8 x 8."""


class _LastBlock(_BlockE):
    """8 x 8, the maximum in the pooling branch."""

    def _pool(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, kernel_size=3, stride=1, padding=1)


class Inception:
    """uint8 images to features of FID's network."""

    def __init__(self, state: Mapping[str, Tensor], *, device: str = "cpu") -> None:
        """Takes the weights.

        Args:
            state: In pytorch-fid's layout.
            device: That the network runs on.

        Raises:
            ValueError: A weight is missing, unknown or of another shape.
        """
        model = _network()
        expected = model.state_dict()
        _check(state, expected)
        missing = {name: value for name, value in expected.items() if name.endswith(_COUNTERS)}
        model.load_state_dict(missing | dict(state))
        model.fc = nn.Identity()
        self._model, self._device = model.to(device).eval(), device

    @torch.no_grad()
    def encode_images(
        self, images: NDArray[np.uint8], *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Features of images of any size, which are resized (bilinear) to 299 x 299.

        Args:
            images: RGB, [n, H, W, 3], 0..255.
            batch_size: Images of one forward pass.

        Returns:
            [n, 2048].
        """
        found = [np.empty((0, INCEPTION_DIM), dtype=np.float32)]
        for start in range(0, len(images), batch_size):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
            pixels = part.to(self._device).permute(0, 3, 1, 2).float() / 255.0
            pixels = functional.interpolate(pixels, size=(_SIDE, _SIDE), mode="bilinear")
            found.append(self._model(2.0 * pixels - 1.0).cpu().numpy())
        return np.concatenate(found)


def load_inception(path: Path, *, device: str = "cpu") -> Inception:
    """Reads a weights file: a state dict, of which only tensors are read.

    Raises:
        ValueError: The file is no such state dict, or not of this network.
    """
    state = read_state_dict(path)
    try:
        return Inception(state, device=device)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _network() -> nn.Module:
    model: nn.Module = blocks.Inception3(num_classes=_CLASSES, aux_logits=False, init_weights=False)
    own: dict[str, nn.Module] = {
        "Mixed_5b": _BlockA(192, pool_features=32),
        "Mixed_5c": _BlockA(256, pool_features=64),
        "Mixed_5d": _BlockA(288, pool_features=64),
        "Mixed_6b": _BlockC(768, channels_7x7=128),
        "Mixed_6c": _BlockC(768, channels_7x7=160),
        "Mixed_6d": _BlockC(768, channels_7x7=160),
        "Mixed_6e": _BlockC(768, channels_7x7=192),
        "Mixed_7b": _BlockE(1280),
        "Mixed_7c": _LastBlock(2048),
    }
    for name, block in own.items():
        setattr(model, name, block)
    return model


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    needed = {name for name in expected if not name.endswith(_COUNTERS)}
    if missing := sorted(needed - set(state)):
        raise ValueError(f"{missing[0]} is missing (and {len(missing) - 1} more): not the weights "
                         "of FID's Inception network")  # fmt: skip
    if unknown := sorted(set(state) - set(expected)):
        raise ValueError(f"{unknown[0]} is no weight of FID's Inception network")
    for name in sorted(needed):
        if state[name].shape != expected[name].shape:
            raise ValueError(
                f"{name} has shape {list(state[name].shape)}, not {list(expected[name].shape)}"
            )
