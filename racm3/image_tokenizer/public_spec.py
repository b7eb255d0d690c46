"""Which public VQ tokenizer: its shape, the layout of its checkpoint, and presets by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

from racm3.image_tokenizer.public_layers import NORM_GROUPS

Layout = Literal["taming", "taming-gumbel", "llamagen"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicVQSpec:
    """Shape of a public VQ tokenizer. The factor f is ``2 ** (len(multipliers) - 1)``."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    layout: Layout
    """How the checkpoint names its tensors and how a latent becomes a code; see `public_layout`."""
    image_size: int
    """Height and width in pixels; a multiple of f. Convolutions take others than trained on."""
    codebook_size: int
    """Number of codes."""
    code_dim: int
    """Dimensions of a code's vector."""
    latent_channels: int = 256
    """Channels between the networks and the codebook's own projections."""
    channels: int = 128
    """Of the first convolution; a level has `multipliers` times as many."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """One a level, finest first; each further level halves the resolution."""
    blocks: int = 2
    """Residual blocks a level of the encoder; the decoder has one more."""
    attention_levels: tuple[int, ...] = ()
    """Levels whose blocks are followed by attention, 0 = finest; the middle always has some."""

    def __post_init__(self) -> None:
        """Refuses shapes that do not fit together.

        Raises:
            ValueError: A number is out of range, the image is no multiple of the factor, or the
                layout cannot have such a shape.
        """
        if self.layout not in get_args(Layout):
            known = ", ".join(get_args(Layout))
            raise ValueError(f"PublicVQSpec.layout is '{self.layout}', but must be one of {known}.")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            least = 0 if field.name == "attention_levels" else 1
            if min(numbers, default=least) < least or not (numbers or least == 0):
                raise ValueError(f"PublicVQSpec.{field.name} is {value!r}, but must be >= {least}.")
        if self.channels % NORM_GROUPS:
            raise ValueError(
                f"PublicVQSpec.channels {self.channels} is no multiple of {NORM_GROUPS}, "
                "the groups of every GroupNorm."
            )
        if self.image_size % self.factor:
            raise ValueError(
                f"PublicVQSpec.image_size {self.image_size} is no multiple of the factor "
                f"{self.factor} ({len(self.multipliers)} levels)."
            )
        if self.layout == "taming-gumbel" and self.code_dim != self.latent_channels:
            raise ValueError(
                "The layout taming-gumbel reads its logits where its codes are written: "
                f"code_dim {self.code_dim} must equal latent_channels {self.latent_channels}."
            )

    @property
    def factor(self) -> int:
        """Pixels a side that one code stands for."""
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.image_size // self.factor, self.image_size // self.factor

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)


_TAMING_F16 = PublicVQSpec(
    layout="taming", image_size=256, codebook_size=1024, code_dim=256, attention_levels=(4,)
)
_TAMING_F8 = PublicVQSpec(
    layout="taming",
    image_size=256,
    codebook_size=16384,
    code_dim=4,
    latent_channels=4,
    multipliers=(1, 2, 2, 4),
    attention_levels=(3,),
)
_LLAMAGEN = replace(_TAMING_F16, layout="llamagen", codebook_size=16384, code_dim=8)

PRESETS: Mapping[str, PublicVQSpec] = {
    "taming-f16-1024": _TAMING_F16,
    "taming-f16-16384": replace(_TAMING_F16, codebook_size=16384),
    "taming-f8-256": replace(_TAMING_F8, codebook_size=256),
    "taming-f8-16384": _TAMING_F8,
    "taming-gumbel-f8-8192": replace(
        _TAMING_F16,
        layout="taming-gumbel",
        codebook_size=8192,
        multipliers=(1, 1, 2, 4),
        attention_levels=(3,),
    ),
    "llamagen-vq8": replace(_LLAMAGEN, multipliers=(1, 2, 2, 4), attention_levels=(3,)),
    "llamagen-vq16": _LLAMAGEN,
    "chameleon-f16-8192": replace(
        _TAMING_F16, image_size=512, codebook_size=8192, attention_levels=()
    ),
}
"""By name: who published it, the factor and the codes. taming-f16 are ImageNet's, taming-f8 those
of latent diffusion (vq-f8, vq-f8-n256), taming-gumbel OpenImages', llamagen vq_ds8 and vq_ds16,
chameleon the Make-A-Scene line at 512 pixels (its licence forbids commercial use). Shapes are
those of the published configurations (`ddconfig` and `VQ_models` in the original sources)."""
