"""Fits a VQGAN with `racm3.training.fit`: reconstruction, commitment, and an optional adversary.

One optimiser serves tokenizer and discriminator: the tokenizer's adversarial loss passes through a
copy of the discriminator's weights that takes no gradient, and the discriminator's loss through a
detached reconstruction, so one backward pass gives each its own gradient. (The original alternates
two optimisers; arXiv:2012.09841.) Gradients are clipped together.

The codebook learns after each step: moving averages, k-means at the end of the un-quantised
warm-up, dead codes revived. Its whole state lives in the model's buffers, so a checkpoint resumes
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from racm3.image_tokenizer.codebook import assignment_sums
from racm3.image_tokenizer.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from racm3.image_tokenizer.vqgan import VQGAN, Reconstruction, VQGANConfig

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""(reconstructions, originals), both [B, 3, H, W], originals in [0, 1] -> a scalar to minimise."""

_BATCH, _FLIP, _START, _REVIVE, _WEIGHTS = 1, 2, 3, 4, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTokenizerTaskConfig:
    """What is minimised, and how the codebook learns."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    seed: int = 0
    """Of weights, batches, k-means and revived codes."""
    batch_size: int = 32
    """Images a step and rank."""
    flip: bool = False
    """Mirror half of the images."""
    squared_weight: float = 1.0
    """Of the mean squared error of pixels in [-1, 1]: what PSNR measures."""
    absolute_weight: float = 0.1
    """Of the mean absolute error of pixels in [-1, 1]: sharper edges."""
    commitment_weight: float = 0.25
    """Of the distance of latents to their codes (beta in arXiv:1711.00937)."""
    perceptual_weight: float = 0.0
    """Of the perceptual term, a callable given to the task; see `racm3.training.perceptual`."""
    adversarial_weight: float = 0.0
    """Of the hinge loss against the discriminator; 0 = there is no discriminator."""
    adversarial_start: int = 0
    """Step from which the tokenizer hears the discriminator (which learns from the first)."""
    adversarial_adaptive: bool = True
    """Balance gradient norms at the last layer as the original does; False: the weight as it is."""
    discriminator_width: int = 64
    """Channels of its first level; a multiple of 8."""
    discriminator_levels: int = 3
    """Halvings of resolution in it."""
    warmup_steps: int = 100
    """Steps without quantisation before the codebook starts by k-means."""
    start_batches: int = 16
    """Batches whose latents k-means sees."""
    start_iterations: int = 10
    """Of k-means."""
    decay: float = 0.99
    """Of the codebook's moving averages."""
    revive_every: int = 20
    """Steps between revivals of dead codes."""
    revive_below: float = 0.03
    """A code used less than this share of even use is dead."""
    revive_until: float = 0.8
    """No revivals after this fraction of `total_steps`, so that codes come to rest."""
    total_steps: int = 2000
    """Steps of the whole fit, for `revive_until` only."""

    def __post_init__(self) -> None:
        """Refuses what cannot be run.

        Raises:
            ValueError: A number is out of its range.
        """
        for name in ("batch_size", "start_batches", "start_iterations", "revive_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"ImageTokenizerTaskConfig.{name} must be >= 1.")
        for name in (
            *("squared_weight", "absolute_weight", "commitment_weight", "perceptual_weight"),
            *("adversarial_weight", "warmup_steps", "adversarial_start", "total_steps"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"ImageTokenizerTaskConfig.{name} must be >= 0.")
        for name in ("decay", "revive_below", "revive_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ImageTokenizerTaskConfig.{name} must be in [0, 1].")


class Terms(NamedTuple):
    """The parts of one step's loss, scalars, and the pass they come from."""

    reconstruction: Tensor
    commitment: Tensor
    adversarial: Tensor
    discriminator: Tensor
    made: Reconstruction


class TokenizerWithCritic(nn.Module):
    """The tokenizer and, where there is an adversary, its discriminator: what `fit` optimises."""

    def __init__(
        self,
        tokenizer: VQGAN,
        critic: PatchDiscriminator | None,
        config: ImageTokenizerTaskConfig,
        perceptual: Perceptual | None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.critic = critic
        self._config = config
        self._perceptual = perceptual

    def forward(self, images: Tensor) -> Terms:
        """Returns the terms of the loss on images [B, 3, H, W] in [0, 1]."""
        made: Reconstruction = self.tokenizer(images)
        difference = 2.0 * (made.images - images)
        reconstruction = (
            self._config.squared_weight * difference.square().mean()
            + self._config.absolute_weight * difference.abs().mean()
        )
        if self._perceptual is not None:
            distance = self._perceptual(made.images, images)
            reconstruction = reconstruction + self._config.perceptual_weight * distance
        zero = reconstruction.new_zeros(())
        if self.critic is None:
            return Terms(reconstruction, made.commitment, zero, zero, made)
        frozen = {name: value.detach() for name, value in self.critic.named_parameters()}
        heard = hinge_generator_loss(functional_call(self.critic, frozen, (made.images,)))
        judged = hinge_discriminator_loss(
            self.critic(images), self.critic(made.images.detach().clamp(0.0, 1.0))
        )
        return Terms(reconstruction, made.commitment, heard, judged, made)


class ImageTokenizerTask:
    """A `FitTask` (with `after_step`) that fits a VQGAN on images in memory.

    After `fit`, `tokenizer` is the VQGAN with the best weights. In `fit`'s checkpoints its tensors
    are named ``tokenizer.*`` and those of a discriminator ``critic.*``.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        model_config: VQGANConfig,
        config: ImageTokenizerTaskConfig,
        *,
        perceptual: Perceptual | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """Makes the task; equal arguments give equal weights.

        Args:
            images: uint8 [N, image_size, image_size, 3]; may be memory-mapped.
            model_config: Shape of the VQGAN.
            config: Losses and codebook.
            perceptual: The perceptual term; used when given.
            device: Of model and batches.

        Raises:
            ValueError: The images have another shape, there are none, or a perceptual weight is
                asked for without a perceptual term (or the other way round).
        """
        side = model_config.image_size
        if images.ndim != 4 or images.shape[1:] != (side, side, 3) or len(images) == 0:
            raise ValueError(
                f"The image tokenizer is fitted on images [N >= 1, {side}, {side}, 3], "
                f"not {list(images.shape)}."
            )
        if (perceptual is None) != (config.perceptual_weight == 0):
            raise ValueError("perceptual_weight > 0 and a perceptual term need each other.")
        self.images = images
        self.config = config
        self.device = torch.device(device)
        self.tokenizer = VQGAN(model_config, generator=_torch_generator(config.seed, _WEIGHTS, 0))
        critic = None
        if config.adversarial_weight > 0:
            critic = PatchDiscriminator(
                width=config.discriminator_width,
                levels=config.discriminator_levels,
                generator=_torch_generator(config.seed, _WEIGHTS, 1),
            )
        whole = TokenizerWithCritic(self.tokenizer, critic, config, perceptual)
        self.model: nn.Module = whole.to(self.device)
        self._last: tuple[Tensor, Tensor] | None = None
        self._world_size = 1
        self._flops = _forward_flops(self.tokenizer)

    def batch(self, step: int, *, rank: int, world_size: int) -> Tensor:
        """Returns float32 [B, 3, H, W] in [0, 1]: a pure function of (seed, step, rank).

        Every epoch is a permutation keyed by (seed, epoch); ranks read neighbouring pieces of it.
        """
        count, size = len(self.images), self.config.batch_size
        first = (step * world_size + rank) * size
        places = range(first, first + size)
        rows = np.array(
            [_permutation(self.config.seed, p // count, count)[p % count] for p in places]
        )
        chosen = np.ascontiguousarray(self.images[rows])
        if self.config.flip:
            coins = _numpy_generator(self.config.seed, _FLIP, step, rank).random(size) < 0.5
            chosen[coins] = chosen[coins, :, ::-1]
        return images_to_tensor(chosen).to(self.device)

    def loss(self, step: int, *, rank: int, world_size: int) -> tuple[Tensor, dict[str, float]]:
        """Returns the loss of a step's batch and its terms."""
        images = self.batch(step, rank=rank, world_size=world_size)
        terms: Terms = self.model(images)
        self._last = (terms.made.latents.detach(), terms.made.codes)
        self._world_size = world_size
        config = self.config
        total = terms.reconstruction + config.commitment_weight * terms.commitment
        if config.adversarial_weight > 0:
            total = total + terms.discriminator
            if step >= config.adversarial_start:
                total = total + self._adversarial_weight(terms) * terms.adversarial
        error = (terms.made.images.detach().clamp(0.0, 1.0) - images).square().mean()
        numbers = {
            "reconstruction": terms.reconstruction,
            "commitment": terms.commitment,
            "psnr": -10.0 * error.clamp(min=1e-10).log10(),
        }
        if config.adversarial_weight > 0:
            numbers |= {"adversarial": terms.adversarial, "discriminator": terms.discriminator}
        return total, {name: float(value.detach()) for name, value in numbers.items()}

    def _adversarial_weight(self, terms: Terms) -> Tensor | float:
        if not self.config.adversarial_adaptive:
            return self.config.adversarial_weight
        balance = adaptive_weight(
            terms.reconstruction, terms.adversarial, self.tokenizer.last_layer
        )
        return self.config.adversarial_weight * balance

    def step_flops(self, step: int) -> float:
        """Returns the tokenizer's FLOPs of a step, 3 x forward; no discriminator's or features'."""
        return 3.0 * self._flops * self.config.batch_size

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Moves the codebook: k-means after the warm-up, then averages, and revivals."""
        codebook = self.tokenizer.codebook
        if not bool(codebook.started):
            if step + 1 >= self.config.warmup_steps:
                self._start_codebook(step)
            return
        assert self._last is not None, "after_step follows loss"
        latents, codes = self._last
        counts, sums = assignment_sums(latents, codes, codebook.vectors.shape[0])
        if self._world_size > 1:
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        codebook.update(counts, sums, decay=self.config.decay)
        if self._revives(step):
            if self._world_size > 1:
                torch.distributed.broadcast(latents, src=0)
            codebook.revive(
                latents,
                threshold=self.config.revive_below,
                generator=_torch_generator(self.config.seed, _REVIVE, step),
            )

    def _revives(self, step: int) -> bool:
        early = step < self.config.revive_until * self.config.total_steps
        return early and (step + 1) % self.config.revive_every == 0

    def _start_codebook(self, step: int) -> None:
        """Every worker reads the same batches, rank 0's, and so comes to the same codebook."""
        rows, columns = self.tokenizer.grid
        enough = self.tokenizer.codebook_size / (self.config.batch_size * rows * columns)
        count = max(self.config.start_batches, math.ceil(enough))
        latents = [
            self.tokenizer.latents(self.batch(step + 1 + i, rank=0, world_size=1))
            for i in range(count)
        ]
        self.tokenizer.codebook.start(
            torch.cat(latents),
            iterations=self.config.start_iterations,
            generator=_torch_generator(self.config.seed, _START, step),
        )


def images_to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255.0


def tensor_to_images(images: Tensor) -> NDArray[np.uint8]:
    """Float [B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3], rounded to nearest."""
    scaled = (images.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())


@torch.no_grad()
def reconstruction_metrics(
    tokenizer: VQGAN, images: NDArray[np.uint8], *, batch_size: int = 64
) -> dict[str, float]:
    """Measures a tokenizer on images it was not fitted on; fits `fit`'s validation.

    Args:
        tokenizer: The tokenizer; of `ImageTokenizerTask.model` it is the attribute ``tokenizer``.
        images: uint8 [N, H, W, 3].
        batch_size: Images a pass.

    Returns:
        ``loss``: mean squared error of pixels in [0, 1], infinite before the codebook has started
        (an un-quantised pass is better than any tokenizer and must not be kept as the best);
        ``psnr``: mean over images, dB; ``codes_used``: fraction of the codebook that occurs.
    """
    device = tokenizer.last_layer.device
    errors: list[Tensor] = []
    used = torch.zeros(tokenizer.codebook_size, dtype=torch.bool, device=device)
    for first in range(0, len(images), batch_size):
        batch = images_to_tensor(images[first : first + batch_size]).to(device)
        made: Reconstruction = tokenizer(batch)
        errors.append((made.images.clamp(0.0, 1.0) - batch).square().mean((1, 2, 3)))
        used[made.codes] = True
    error = torch.cat(errors).double()
    return {
        "loss": float(error.mean()) if bool(tokenizer.codebook.started) else math.inf,
        "psnr": float((-10.0 * error.clamp(min=1e-10).log10()).mean()),
        "codes_used": float(used.double().mean()),
    }


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return _numpy_generator(seed, _BATCH, epoch).permutation(count)


def _numpy_generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _torch_generator(*key: int) -> torch.Generator:
    word = int(np.random.SeedSequence(key).generate_state(1, np.uint32)[0])
    return torch.Generator().manual_seed(word)


def _forward_flops(tokenizer: VQGAN) -> float:
    """Counts 2 FLOPs a multiply-add of every convolution and of the codebook search, one image."""
    config = tokenizer.config
    rows, columns = tokenizer.grid
    search = 2.0 * rows * columns * config.code_dim * config.codebook_size
    encoder = _convolution_flops(tokenizer.encoder, config.image_size)
    return search + encoder + _convolution_flops(tokenizer.decoder, rows)


def _convolution_flops(network: nn.Sequential, side: int) -> float:
    total, now = 0.0, side
    for layer in network:
        if isinstance(layer, nn.PixelUnshuffle):
            now = now // layer.downscale_factor
        elif isinstance(layer, nn.PixelShuffle):
            now = now * layer.upscale_factor
        convolutions = [part for part in layer.modules() if isinstance(part, nn.Conv2d)]
        total += sum(2.0 * part.weight.numel() * now * now for part in convolutions)
    return total
