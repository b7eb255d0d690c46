"""The patch discriminator of VQGAN and its hinge losses (arXiv:2012.09841, section 3.2).

It judges overlapping patches, so its verdict is a map. GroupNorm takes the place of the original's
BatchNorm: no running statistics, so a checkpoint has nothing to forget and workers agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MAX_ADAPTIVE_WEIGHT = 1e4
"""Upper bound of the adaptive weight, as in the original's code."""


class PatchDiscriminator(nn.Module):
    """Strided 4x4 convolutions, each halving the resolution, and one verdict a place."""

    def __init__(self, *, width: int, levels: int, generator: torch.Generator) -> None:
        """Makes one with random weights.

        Args:
            width: Channels of the first level; each further level doubles them, up to eight times.
            levels: Number of halvings, >= 1.
            generator: On the CPU; the weights are a function of its state.

        Raises:
            ValueError: `width` is no multiple of 8, or `levels` is below 1.
        """
        super().__init__()
        if width % 8 or width < 8 or levels < 1:
            raise ValueError(
                f"A discriminator needs a width that is a multiple of 8 (not {width}) "
                f"and at least one level (not {levels})."
            )
        layers: list[nn.Module] = []
        before = 3
        for level in range(levels):
            after = width * min(2**level, 8)
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            if level > 0:
                layers.append(nn.GroupNorm(8, after))
            layers.append(nn.LeakyReLU(0.2))
            before = after
        layers.append(nn.Conv2d(before, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                with torch.no_grad():
                    module.weight.normal_(0.0, 0.02, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Judges images [B, 3, H, W] in [0, 1]: verdicts [B, 1, H/2**levels, W/2**levels]."""
        verdicts: Tensor = self.layers(images * 2.0 - 1.0)
        return verdicts


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Returns (mean relu(1 - real) + mean relu(1 + fake)) / 2 of two maps of verdicts."""
    return 0.5 * (torch.relu(1.0 - real).mean() + torch.relu(1.0 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """Returns minus the mean verdict on what the generator made."""
    loss: Tensor = -fake.mean()
    return loss


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Returns the weight that gives both losses gradients of equal norm at the last layer.

    Args:
        reconstruction: Scalar loss, differentiable with respect to `last_layer`.
        adversarial: Likewise.
        last_layer: Weight of the decoder's last convolution.

    Returns:
        Scalar in [0, `MAX_ADAPTIVE_WEIGHT`], without gradient.
    """
    (wanted,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (given,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    ratio: Tensor = wanted.norm() / (given.norm() + 1e-4)
    return ratio.clamp(0.0, MAX_ADAPTIVE_WEIGHT).detach()
