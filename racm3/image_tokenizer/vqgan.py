"""VQGAN: a convolutional encoder, a codebook, a convolutional decoder (arXiv:2012.09841).

One class for all sizes: the default is the tiny one (64x64, f8, 64 codes of 256); `VQGAN_F8_8192`
is the shape RA-CM3 reads (256x256, f8, 1024 codes of 8192). We differ from the original in three
places: resolution is changed by pixel-(un)shuffle and 1x1 convolutions, which is cheap on a CPU;
the second convolution of a residual block is 1x1; the codebook learns by moving averages, not by
gradients. There is no attention.

B batch, H and W pixels, h and w grid, d code dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from racm3.image_tokenizer.base import checked_codes, checked_images
from racm3.image_tokenizer.codebook import Codebook


@dataclass(frozen=True, kw_only=True, slots=True)
class VQGANConfig:
    """Shape of a VQGAN. The factor f between pixels and codes is ``patch * 2**(len(widths)-1)``."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    image_size: int = 64
    """Height and width in pixels; a multiple of f."""
    codebook_size: int = 256
    """Number of codes."""
    code_dim: int = 16
    """Dimensions of a code's vector."""
    patch: int = 4
    """Pixels a side that the first pixel-unshuffle folds into channels."""
    widths: tuple[int, ...] = (32, 112)
    """Channels of each level, finest first; each further level halves the resolution."""
    encoder_blocks: int = 1
    """Residual blocks a level in the encoder."""
    decoder_blocks: int = 2
    """Residual blocks a level in the decoder."""
    norm_groups: int = 0
    """Groups of GroupNorm before every convolution of a block; 0 = no normalisation."""

    def __post_init__(self) -> None:
        """Refuses shapes that do not fit together.

        Raises:
            ValueError: A number is out of range or the image is not a multiple of the factor.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in {"norm_groups", "encoder_blocks", "decoder_blocks"} else 1
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or min(numbers) < least:
                raise ValueError(f"VQGANConfig.{field.name} is {value!r}, but must be >= {least}.")
        if self.image_size % self.factor:
            raise ValueError(
                f"VQGANConfig.image_size {self.image_size} is no multiple of the factor "
                f"{self.factor} (patch {self.patch}, {len(self.widths)} levels)."
            )
        if self.norm_groups and any(width % self.norm_groups for width in self.widths):
            raise ValueError(
                f"VQGANConfig.widths {self.widths} are not multiples of norm_groups "
                f"{self.norm_groups}."
            )

    @property
    def factor(self) -> int:
        """Pixels a side that one code stands for."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.image_size // self.factor, self.image_size // self.factor


VQGAN_TINY = VQGANConfig()
"""64x64, 8x8 codes of 256, half a million parameters: minutes on one CPU thread."""

VQGAN_F8_8192 = VQGANConfig(
    image_size=256,
    codebook_size=8192,
    code_dim=256,
    patch=1,
    widths=(128, 128, 256, 512),
    encoder_blocks=2,
    decoder_blocks=3,
    norm_groups=32,
)
"""256x256, 32x32 codes of 8192: the shape of RA-CM3's tokenizer, for a GPU."""


class Reconstruction(NamedTuple):
    """What one pass through the tokenizer gives."""

    images: Tensor
    """[B, 3, H, W], not clamped to [0, 1], so that gradients pass."""
    latents: Tensor
    """[B*h*w, d], the encoder's output."""
    codes: Tensor
    """int64 [B*h*w]; zeros before the codebook has started."""
    commitment: Tensor
    """Scalar: mean squared distance of latents to their codes' vectors; pulls on latents only."""


class VQGAN(nn.Module):
    """An `ImageTokenizer` with learnt weights."""

    def __init__(self, config: VQGANConfig, *, generator: torch.Generator) -> None:
        """Makes one with random weights.

        Args:
            config: Its shape.
            generator: On the CPU; the weights are a function of its state.
        """
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)
        self.codebook = Codebook(config.codebook_size, config.code_dim)
        _start_weights(self, generator)

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.config.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.config.grid

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.config.codebook_size

    @property
    def code_vectors(self) -> Tensor:
        """[codebook_size, d]: what the decoder reads for each code."""
        return self.codebook.vectors

    @property
    def last_layer(self) -> Tensor:
        """Weight that makes the pixels: where adversarial and other gradients are balanced."""
        weight = self.decoder[-2].weight
        assert isinstance(weight, Tensor)
        return weight

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the codes, int64 [B, h*w], of images float32 [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: The images have another shape than the configuration says.
        """
        pixels = checked_images(self, images).to(self._device)
        codes = self.codebook.nearest(self.latents(pixels))
        return codes.view(images.shape[0], -1).to(images.device)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Returns the images, [B, 3, H, W] in [0, 1], of codes int64 [B, h*w].

        Raises:
            ValueError: The codes have another shape or are out of range.
        """
        chosen = checked_codes(self, codes).to(self._device)
        vectors = self.codebook.lookup(chosen.flatten())
        return self.paint(vectors).clamp(0.0, 1.0).to(codes.device)

    @property
    def _device(self) -> torch.device:
        return self.codebook.vectors.device

    def latents(self, images: Tensor) -> Tensor:
        """Returns the encoder's output [B*h*w, d], row-major, of images [B, 3, H, W]."""
        grid_BdHW: Tensor = self.encoder(images * 2.0 - 1.0)
        return grid_BdHW.permute(0, 2, 3, 1).reshape(-1, self.config.code_dim)

    def paint(self, vectors: Tensor) -> Tensor:
        """Returns the decoder's output [B, 3, H, W] of vectors [B*h*w, d], not clamped."""
        rows, columns = self.grid
        grid = vectors.view(-1, rows, columns, self.config.code_dim).permute(0, 3, 1, 2)
        images: Tensor = self.decoder(grid.contiguous())
        return images * 0.5 + 0.5

    def forward(self, images: Tensor) -> Reconstruction:
        """Reconstructs images [B, 3, H, W] with gradients.

        Before the codebook has started (`Codebook.start`), latents pass un-quantised.
        """
        latents = self.latents(images)
        if not bool(self.codebook.started):
            codes = torch.zeros(latents.shape[0], dtype=torch.int64, device=latents.device)
            return Reconstruction(self.paint(latents), latents, codes, latents.new_zeros(()))
        codes = self.codebook.nearest(latents.detach())
        vectors = self.codebook.lookup(codes)
        commitment = nn.functional.mse_loss(latents, vectors)
        passed_through = latents + (vectors - latents).detach()
        return Reconstruction(self.paint(passed_through), latents, codes, commitment)


class ResidualBlock(nn.Module):
    """x + conv1x1(gelu(conv3x3(gelu(x)))), with GroupNorm before each where asked for."""

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _norm(width, norm_groups),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(width, width, 3, padding=1),
            _norm(width, norm_groups),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> the same shape."""
        branch: Tensor = self.layers(x)
        return x + branch


def _norm(width: int, groups: int) -> nn.Module:
    return nn.GroupNorm(groups, width) if groups else nn.Identity()


def _encoder(config: VQGANConfig) -> nn.Sequential:
    width = config.widths[0]
    layers: list[nn.Module] = [
        nn.PixelUnshuffle(config.patch),
        nn.Conv2d(3 * config.patch**2, width, 3, padding=1),
    ]
    for level, wider in enumerate(config.widths):
        if level > 0:
            layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * width, wider, 1)]
        layers += [ResidualBlock(wider, config.norm_groups) for _ in range(config.encoder_blocks)]
        width = wider
    layers += [nn.Conv2d(width, config.code_dim, 1)]
    return nn.Sequential(*layers)


def _decoder(config: VQGANConfig) -> nn.Sequential:
    width = config.widths[-1]
    layers: list[nn.Module] = [nn.Conv2d(config.code_dim, width, 3, padding=1)]
    for level, narrower in enumerate(reversed(config.widths)):
        if level > 0:
            layers += [nn.Conv2d(width, 4 * narrower, 1), nn.PixelShuffle(2)]
        layers += [
            ResidualBlock(narrower, config.norm_groups) for _ in range(config.decoder_blocks)
        ]
        width = narrower
    layers += [
        nn.GELU(approximate="tanh"),
        nn.Conv2d(width, 3 * config.patch**2, 3, padding=1),
        nn.PixelShuffle(config.patch),
    ]
    return nn.Sequential(*layers)


def _start_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Sets convolutions to variance-keeping normals and zeroes what ends a residual branch."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            with torch.no_grad():
                module.weight.normal_(0.0, fan_in**-0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.layers[-1].weight)  # type: ignore[arg-type]


def vqgan_of(
    config: VQGANConfig, state: Mapping[str, Tensor], *, device: str | torch.device = "cpu"
) -> VQGAN:
    """Makes a VQGAN of a configuration and a state dict, in evaluation mode.

    Raises:
        ValueError: The tensors' names or shapes do not fit the configuration.
    """
    model = VQGAN(config, generator=torch.Generator().manual_seed(0))
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(f"The weights do not fit the VQGAN's configuration: {error}") from error
    return model.to(device).eval()
