"""A perceptual term for an image tokenizer's training: distance in a frozen network's features.

It has the form of LPIPS without its learned channel weights (arXiv:1801.03924, equation 1, the
unweighted variant); VQGAN's training used LPIPS (arXiv:2012.09841). The features are those of a
CLIP image tower from a weights file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from racm3.encoder.clip import ClipSpec, ImageTower, load_image_tower


class FeatureDistance:
    """A `Perceptual`: (made, real), both [B, 3, H, W] in [0, 1] -> scalar >= 0.

    The mean over blocks, images and places of the squared distance between the two feature maps,
    each place's channels scaled to length 1: at most 4. Gradients reach `made` alone. It is no
    module, so that its weights enter neither optimiser nor checkpoint.
    """

    def __init__(self, tower: ImageTower) -> None:
        self.tower = tower

    def __call__(self, made: Tensor, real: Tensor) -> Tensor:
        """Returns the distance."""
        with torch.no_grad():
            wanted = [_unit(features) for features in self.tower.intermediates(real)]
        given = [_unit(features) for features in self.tower.intermediates(made)]
        parts = [
            (one - other).square().sum(1).mean() for one, other in zip(given, wanted, strict=True)
        ]
        return torch.stack(parts).mean()


def load_feature_distance(spec: ClipSpec, *, device: str | torch.device = "cpu") -> FeatureDistance:
    """Reads the tower that a spec names.

    Raises:
        racm3.encoder.clip.EncoderError: As of `load_image_tower`.
    """
    return FeatureDistance(load_image_tower(spec, device=device))


def _unit(features: Tensor) -> Tensor:
    """[B, C, h, w] with channels of length 1."""
    return features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()
