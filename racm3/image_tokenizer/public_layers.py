"""The convolutional encoder and decoder that the public VQ tokenizers share.

taming-transformers' VQGAN (arXiv:2012.09841), LlamaGen's tokenizer (arXiv:2406.06525) and
Chameleon's (arXiv:2405.09818) are one network under different names: residual blocks with
GroupNorm(32, eps 1e-6) and swish, strided convolutions padded at the right and the bottom only,
nearest-neighbour upsampling, one attention head over all places, and attention in the middle.

B batch, H and W pixels or places; widths are channels, finest level first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

NORM_GROUPS = 32
"""Groups of every GroupNorm: all widths are multiples of it."""


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))); where widths differ, x by a 1x1 convolution."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.conv1 = nn.Conv2d(width, wider, 3, padding=1)
        self.norm2 = _norm(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width, wider, 1) if width != wider else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, wider, H, W]."""
        branch = self.conv1(nn.functional.silu(self.norm1(x)))
        branch = self.conv2(nn.functional.silu(self.norm2(branch)))
        whole: Tensor = self.nin_shortcut(x) + branch
        return whole


class AttentionBlock(nn.Module):
    """x + attention(norm(x)): one head as wide as the channels, over all H*W places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> the same shape."""
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        read = nn.functional.scaled_dot_product_attention(q, k, v)  # scaled by width ** -0.5
        branch: Tensor = self.proj_out(read[:, 0].transpose(1, 2).reshape(x.shape))
        return x + branch


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 over places padded by one at the right and the bottom."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, width, H/2, W/2]."""
        half: Tensor = self.conv(nn.functional.pad(x, (0, 1, 0, 1)))
        return half


class Upsample(nn.Module):
    """Every place doubled both ways (nearest neighbour), then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, width, 2H, 2W]."""
        doubled: Tensor = self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if asked; then a resampling."""

    def __init__(
        self, width: int, wider: int, *, blocks: int, attention: bool, resample: nn.Module
    ) -> None:
        super().__init__()
        before = [width] + [wider] * (blocks - 1)
        self.blocks = nn.ModuleList([ResidualBlock(one, wider) for one in before])
        self.attention = nn.ModuleList([AttentionBlock(wider) for _ in before if attention])
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, wider, H', W']."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attention):
                x = self.attention[index](x)
        resampled: Tensor = self.resample(x)
        return resampled


class Encoder(nn.Module):
    """Images to latents: the levels from fine to coarse, then the middle."""

    def __init__(
        self,
        first: int,
        widths: Sequence[int],
        *,
        blocks: int,
        attention: Collection[int],
        latent: int,
    ) -> None:
        """Makes one with torch's own initial weights.

        Args:
            first: Channels of the first convolution.
            widths: Channels of each level.
            blocks: Residual blocks a level.
            attention: Levels with attention, 0 = finest.
            latent: Channels of the output.
        """
        super().__init__()
        self.conv_in = nn.Conv2d(3, first, 3, padding=1)
        last = len(widths) - 1
        self.levels = nn.ModuleList(
            [
                Level(
                    before,
                    width,
                    blocks=blocks,
                    attention=level in attention,
                    resample=Downsample(width) if level < last else nn.Identity(),
                )
                for level, (before, width) in enumerate(
                    zip([first, *widths[:-1]], widths, strict=True)
                )
            ]
        )
        self.middle = _middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, latent, h, w]."""
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        latents: Tensor = self.conv_out(nn.functional.silu(self.norm_out(self.middle(x))))
        return latents


class Decoder(nn.Module):
    """Latents to images: the middle, then the levels from coarse to fine, one block more each."""

    def __init__(
        self, widths: Sequence[int], *, blocks: int, attention: Collection[int], latent: int
    ) -> None:
        """Makes one with torch's own initial weights.

        Args:
            widths: Channels of each level, finest first (`levels` holds them coarsest first).
            blocks: Residual blocks a level.
            attention: Levels with attention, 0 = finest.
            latent: Channels of the input.
        """
        super().__init__()
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.middle = _middle(widths[-1])
        self.levels = nn.ModuleList(
            [
                Level(
                    widths[min(level + 1, len(widths) - 1)],
                    widths[level],
                    blocks=blocks,
                    attention=level in attention,
                    resample=Upsample(widths[level]) if level > 0 else nn.Identity(),
                )
                for level in reversed(range(len(widths)))
            ]
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, latent, h, w] -> [B, 3, H, W], about [-1, 1]."""
        x = self.middle(self.conv_in(latents))
        for level in self.levels:
            x = level(x)
        images: Tensor = self.conv_out(nn.functional.silu(self.norm_out(x)))
        return images


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, width, eps=1e-6)


def _middle(width: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(width, width), AttentionBlock(width), ResidualBlock(width, width)
    )
