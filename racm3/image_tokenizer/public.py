"""Public VQ tokenizers: taming-transformers, LlamaGen and Chameleon, read from their checkpoints.

One class serves all: they differ in shape (`PublicVQSpec`), in their tensors' names
(`public_layout`) and in how a latent becomes a code. Differences to the originals: no randomness
(`GumbelVQ` draws its codes even when it only encodes; here the largest logit is taken, the mode of
that draw), and pixels are in [0, 1] outside, in [-1, 1] inside.

B batch, h and w grid, d code dimensions, n codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from racm3.image_tokenizer.base import checked_codes, checked_images
from racm3.image_tokenizer.public_layers import Decoder, Encoder
from racm3.image_tokenizer.public_layout import Shapes, is_ignored, public_name
from racm3.image_tokenizer.public_spec import PublicVQSpec

_ROWS = 16384
"""Latents compared with the codebook at a time: 1 GiB of distances at 16,384 codes."""


class PublicVQ(nn.Module):
    """A frozen `ImageTokenizer` of a public architecture."""

    codebook: Tensor

    def __init__(self, spec: PublicVQSpec) -> None:
        """Makes one without meaningful weights; `public_vq_of` gives it those of a checkpoint."""
        super().__init__()
        self.spec = spec
        shape, latent = (spec.channels, spec.widths), spec.latent_channels
        attention = set(spec.attention_levels)
        self.encoder = Encoder(*shape, blocks=spec.blocks, attention=attention, latent=latent)
        self.decoder = Decoder(
            spec.widths, blocks=spec.blocks + 1, attention=attention, latent=latent
        )
        self.quant_conv = nn.Conv2d(latent, spec.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(spec.code_dim, latent, 1)
        self.register_buffer("codebook", torch.zeros(spec.codebook_size, spec.code_dim))
        if spec.layout == "taming-gumbel":
            self.proj = nn.Conv2d(spec.code_dim, spec.codebook_size, 1)

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.spec.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.spec.grid

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.spec.codebook_size

    @property
    def code_vectors(self) -> Tensor:
        """[n, d]: what the decoder reads for each code; of length 1 in the layout llamagen."""
        if self.spec.layout == "llamagen":
            return nn.functional.normalize(self.codebook, dim=1)
        return self.codebook

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the codes, int64 [B, h*w], of images float32 [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: The images have another shape than the spec says.
        """
        pixels = checked_images(self, images).to(self.codebook.device)
        latents = self.latents(pixels)
        matrix, offset = self._chooser()
        codes = [
            torch.addmm(offset, rows, matrix.T, alpha=-1.0).argmin(1)
            for rows in torch.split(latents, _ROWS)
        ]
        return torch.cat(codes).view(images.shape[0], -1).to(images.device)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Returns the images, [B, 3, H, W] in [0, 1], of codes int64 [B, h*w].

        Raises:
            ValueError: The codes have another shape or are out of range.
        """
        chosen = checked_codes(self, codes).to(self.codebook.device)
        vectors = nn.functional.embedding(chosen.view(-1, *self.grid), self.code_vectors)
        images: Tensor = self.decoder(self.post_quant_conv(vectors.permute(0, 3, 1, 2)))
        return (images * 0.5 + 0.5).clamp(0.0, 1.0).to(codes.device)

    def latents(self, images: Tensor) -> Tensor:
        """Returns what is compared with the codebook, [B*h*w, d] row-major, of images [B, 3, H, W].

        Of length 1 in the layout llamagen.
        """
        grid: Tensor = self.quant_conv(self.encoder(images * 2.0 - 1.0))
        rows = grid.permute(0, 2, 3, 1).reshape(-1, self.spec.code_dim)
        return nn.functional.normalize(rows, dim=1) if self.spec.layout == "llamagen" else rows

    def _chooser(self) -> tuple[Tensor, Tensor]:
        """[n, d] and [n]: the code of a latent z is the least of ``offset - matrix @ z``.

        Half the squared distance is, up to half of |z| squared, of this form; so is a logit's
        negative.
        """
        if self.spec.layout == "taming-gumbel":
            assert self.proj.bias is not None
            return self.proj.weight.flatten(1), -self.proj.bias
        vectors = self.code_vectors
        return vectors, vectors.square().sum(1) / 2


def public_vq_of(
    spec: PublicVQSpec, state: Mapping[str, Tensor], *, device: str | torch.device = "cpu"
) -> PublicVQ:
    """Makes a tokenizer of a spec and a state dict in its layout, in evaluation mode.

    Tensors of the checkpoint's own training (losses, discriminators; see `public_layout`) are left
    out; half precision becomes float32.

    Raises:
        ValueError: Tensors are missing, unknown, or of another shape; at most three of each are
            named.
    """
    with torch.device("meta"):
        model = PublicVQ(spec)
    expected = {public_name(name, spec): name for name in model.state_dict()}
    shapes = {public_name(name, spec): value.shape for name, value in model.state_dict().items()}
    _check_shapes(shapes, {name: value.shape for name, value in state.items()}, spec)
    own = {expected[name]: state[name].to(torch.float32, copy=True) for name in expected}
    model.load_state_dict(own, assign=True)
    return model.requires_grad_(False).to(device).eval()


def public_state(model: PublicVQ) -> dict[str, Tensor]:
    """Returns the state dict in the layout it came in, without what `public_vq_of` left out."""
    return {public_name(name, model.spec): value for name, value in model.state_dict().items()}


def _check_shapes(expected: Shapes, found: Shapes, spec: PublicVQSpec) -> None:
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected and not is_ignored(name)]
    other = [
        f"{name} is {list(found[name])} and not {list(expected[name])}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    parts = ("missing", missing), ("unknown", unknown), ("of another shape", other)
    faults = [f"{len(names)} {what} ({_some(names)})" for what, names in parts if names]
    if faults:
        raise ValueError(
            f"The state dict is not that of a {spec.layout} tokenizer with factor {spec.factor} "
            f"and {spec.codebook_size} codes; tensors: {'; '.join(faults)}."
        )


def _some(names: Iterable[str]) -> str:
    chosen = list(names)
    return ", ".join(chosen[:3]) + (", ..." if len(chosen) > 3 else "")
