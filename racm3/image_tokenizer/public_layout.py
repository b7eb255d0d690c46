"""How public checkpoints name their tensors, and what shapes alone say about a tokenizer.

* ``taming``: `VQModel` of taming-transformers, latent diffusion and Chameleon:
  ``encoder.down.N.block.M``, ``decoder.up.N.block.M`` (0 = finest), ``quantize.embedding``;
* ``taming-gumbel``: `GumbelVQ` of taming-transformers: the same networks, ``quantize.embed`` for
  the codes' vectors and ``quantize.proj`` for the logits whose largest is the code;
* ``llamagen``: ``encoder.conv_blocks.N.res.M``, ``decoder.conv_blocks.N.res.M`` (in the order in
  which they are applied), ``quantize.embedding``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from racm3.image_tokenizer.public_spec import Layout, PublicVQSpec

Shapes = Mapping[str, Sequence[int]]
"""Shape of each tensor of a state dict, by name."""

_IGNORED = ("loss.", "discriminator.", "model_ema.", "quantize.codebook_used", "colorize")
"""Prefixes of what checkpoints keep for their own training."""

_MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}
_TAMING_PARTS = {"blocks": "block", "attention": "attn"}
_LLAMAGEN_PARTS = {"blocks": "res", "attention": "attn"}
_RESAMPLE = {"encoder": "downsample", "decoder": "upsample"}


def is_ignored(name: str) -> bool:
    """Whether a tensor serves the checkpoint's own training alone: losses, critics, statistics."""
    return name.startswith(_IGNORED)


def public_name(name: str, spec: PublicVQSpec) -> str:
    """Returns what the spec's layout calls a tensor of `PublicVQ`.

    Args:
        name: In the state dict of a `PublicVQ` of this spec.
        spec: Layout, and number of levels.
    """
    match name.split("."):
        case ["codebook"]:
            return f"quantize.{'embed' if spec.layout == 'taming-gumbel' else 'embedding'}.weight"
        case ["proj", *rest]:
            return ".".join(["quantize", "proj", *rest])
        case [side, "middle", index, *rest]:
            place = index if spec.layout == "llamagen" else _MIDDLE[index]
            return ".".join([side, "mid", place, *rest])
        case [side, "levels", index, part, *rest]:
            return ".".join([side, *_level_name(side, int(index), part, spec), *rest])
    return name


def _level_name(side: str, index: int, part: str, spec: PublicVQSpec) -> tuple[str, str, str]:
    """Names of the list of levels, of a level and of its part."""
    if spec.layout == "llamagen":
        return "conv_blocks", str(index), _LLAMAGEN_PARTS.get(part, _RESAMPLE[side])
    named = _TAMING_PARTS.get(part, _RESAMPLE[side])
    if side == "encoder":
        return "down", str(index), named
    return "up", str(len(spec.multipliers) - 1 - index), named


def infer_spec(shapes: Shapes, *, image_size: int) -> PublicVQSpec:
    """Reads a tokenizer's spec off the names and shapes of its state dict.

    Args:
        shapes: Of the state dict.
        image_size: Pixels a side: the one thing that no shape says.

    Raises:
        ValueError: The names are of no layout that is known, or a tensor that tells the shape is
            missing.
    """
    layout = _layout_of(shapes)
    root = "encoder.conv_blocks" if layout == "llamagen" else "encoder.down"
    blocks = "res" if layout == "llamagen" else "block"
    book = f"quantize.{'embed' if layout == 'taming-gumbel' else 'embedding'}.weight"
    levels = _count(shapes, f"{root}.")
    try:
        channels = shapes["encoder.conv_in.weight"][0]
        widths = [shapes[f"{root}.{n}.{blocks}.0.conv1.weight"][0] for n in range(levels)]
        code_dim, latent = shapes["quant_conv.weight"][:2]
        return PublicVQSpec(
            layout=layout,
            image_size=image_size,
            codebook_size=shapes[book][0],
            code_dim=code_dim,
            latent_channels=latent,
            channels=channels,
            multipliers=tuple(width // channels for width in widths),
            blocks=_count(shapes, f"{root}.0.{blocks}."),
            attention_levels=tuple(n for n in range(levels) if _count(shapes, f"{root}.{n}.attn.")),
        )
    except KeyError as error:
        raise ValueError(
            f"A state dict of the layout {layout} has no {error}, which tells its shape: "
            "name a preset, or give the whole checkpoint."
        ) from error


def _layout_of(shapes: Shapes) -> Layout:
    if any(name.startswith("encoder.conv_blocks.") for name in shapes):
        return "llamagen"
    if any(name.startswith("encoder.down.") for name in shapes):
        return "taming-gumbel" if "quantize.embed.weight" in shapes else "taming"
    some = ", ".join(sorted(shapes)[:3]) or "none"
    raise ValueError(
        f"The state dict has neither encoder.down.N (taming) nor encoder.conv_blocks.N (llamagen); "
        f"its first tensors are: {some}."
    )


def _count(names: Iterable[str], prefix: str) -> int:
    """Number of entries of a list of modules: of different first parts after the prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})
