"""Shapes of the generator, and the named ones.

The named sizes are the OPT shapes (metaseq's presets) that RA-CM3's scaling study uses; 2.7b is
RA-CM3's own: 32 layers, width 2560, 32 heads (arXiv:2211.12561). Their feed-forward is 4 x width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

Positions = Literal["document", "rope", "sequence"]
SizeName = Literal["tiny", "125m", "350m", "1.3b", "2.7b"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorConfig:
    """What a generator is made of; the vocabulary's size comes from the vocabulary."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    layers: int
    """Decoder blocks, >= 1."""
    width: int
    """Of the residual stream; a multiple of `heads`."""
    heads: int
    """Attention heads, >= 1."""
    ffn: int | None = None
    """Width of the feed-forward; `None` = 4 x width."""
    max_length: int = 4096
    """Longest sequence: rows of the learned table of `positions="sequence"`."""
    positions: Positions = "sequence"
    """``document``: tables of own place, next place and slot (small models); ``rope``: rotary;
    ``sequence``: one learned table by position in the sequence."""
    num_places: int = 0
    """Rows of the place tables: `PlaceTable.size`. Only for ``document``, and then >= 1."""
    num_slots: int = 3
    """Documents that have an embedding of their own, >= 1: the main document, then contexts; those
    beyond the last share it. 1: contexts are told from the main document by nothing but their
    place in the sequence, so what is learnt of tokens of one document holds for the next. Only
    for ``document``."""
    tie_embeddings: bool = True
    """The output layer is the embedding (fairseq's and OPT's way)."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Of the feed-forward. ``relu`` (OPT's) takes about 15 % less time on a CPU."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head (Chameleon), for stability at scale."""
    dropout: float = 0.0
    """After the embedding, each attention and each feed-forward; in [0, 1)."""
    bias: bool = True
    """Biases in linear layers and norms (OPT has them, CM3Leon has none)."""
    init_std: float = 0.02
    """Of linear layers; residual outputs are divided by sqrt(2 x layers), as in Megatron."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: A number is out of its range.
        """
        for name in ("layers", "width", "heads", "max_length", "num_slots"):
            if getattr(self, name) < 1:
                raise ValueError(f"GeneratorConfig.{name} must be at least 1.")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"GeneratorConfig.width {self.width} must be {self.heads} heads of an even size."
            )
        if self.ffn is not None and self.ffn < 1:
            raise ValueError("GeneratorConfig.ffn must be at least 1, or None for 4 x width.")
        if self.positions == "document" and self.num_places < 1:
            raise ValueError(
                'GeneratorConfig.num_places must be the place table\'s size for "document".'
            )
        if not 0 <= self.dropout < 1:
            raise ValueError("GeneratorConfig.dropout must be in [0, 1).")

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward."""
        return self.ffn if self.ffn is not None else 4 * self.width


SIZES: dict[SizeName, GeneratorConfig] = {
    "tiny": GeneratorConfig(
        layers=3, width=96, heads=3, max_length=512, activation="relu", init_std=0.1
    ),
    "125m": GeneratorConfig(layers=12, width=768, heads=12),
    "350m": GeneratorConfig(layers=24, width=1024, heads=16, qk_norm=True),
    "1.3b": GeneratorConfig(layers=24, width=2048, heads=32, qk_norm=True),
    "2.7b": GeneratorConfig(layers=32, width=2560, heads=32, qk_norm=True),
}
"""Layers, width and heads of OPT (arXiv:2205.01068). With OPT's 50,272 ids and 2,050 positions and
without QK-norm, ours have 125,239,296, 355,889,152, 1,315,758,080 and 2,651,596,800 parameters: the
count of OPT-125M, 1.3B and 2.7B to the last one. OPT's 350M has 331,196,416, because its embedding
is 512 wide and projected to 1,024 (and its last norm is missing); ours is 1,024 wide. So the names
round: by 0.2 %, 1.7 % (OPT's own: 5.4 %), 1.2 % and 1.8 %. A vocabulary of 65,536 and 4,096
positions add 13.3, 17.7, 35.5 and 44.3 million; QK-norm 3,072, 3,072 and 5,120 parameters."""


def named_config(name: SizeName, **changes: Any) -> GeneratorConfig:
    """Returns a named size with some fields changed.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in SIZES:
        raise ValueError(f"There is no generator size {name!r}; there are {', '.join(SIZES)}.")
    return replace(SIZES[name], **changes)
