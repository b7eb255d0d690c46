"""Fits a small CLIP on (caption, image) pairs with open_clip's own loss.

Used where no pretrained CLIP is given (RA-CM3 takes OpenAI's, frozen; arXiv:2211.12561). The
trainer knows pairs only, not which documents show the same thing; `image_contrast` takes captions
for that (`racm3.training.alike`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from racm3.encoder.augment import AugmentConfig, augment_images, drop_words
from racm3.encoder.clip import ClipSpec, make_clip, prepare_images
from racm3.encoder.tokenizer import EncoderTokenizer
from racm3.training.alike import (
    alike,
    image_contrast,
    pick_partners,
    unmistakable_clip_loss,
)
from racm3.training.bag_start import lock_text_tower, start_bag_tower, text_vectors
from racm3.training.fit import FitConfig, FitResult, LogRow, fit

_LARGEST_SCALE = math.log(100)
"""CLIP's own bound on the logit scale."""
_SHUFFLE, _NOISE = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderShape:
    """Sizes of both towers, in the words of open_clip's model configs."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    embed_dim: int = 128
    """Length of a vector."""
    image_size: int = 32
    """Side of the square the image tower sees; a multiple of 32 for `resnet`."""
    image_tower: Literal["vit", "resnet"] = "vit"
    image_width: int = 96
    """Width; a multiple of 32 for `vit`, of 8 for `resnet`."""
    image_layers: int = 2
    """Blocks; for `resnet`, bottlenecks in each of its four stages."""
    patch_size: int = 8
    """Side of a patch of `vit`."""
    text_width: int = 128
    """A multiple of 32."""
    text_layers: int = 1
    vocab_size: int = 1024
    """Largest number of text ids; at least 258."""
    context_length: int = 24
    """Text ids of a caption, the end token included; the tail is cut."""

    def __post_init__(self) -> None:
        if self.text_width % 32 or (self.image_tower == "vit" and self.image_width % 32):
            raise ValueError("encoder.shape: a transformer's width must be a multiple of 32.")
        divisor = self.patch_size if self.image_tower == "vit" else 32
        if min(self.embed_dim, self.image_layers, self.text_layers) < 1 or self.context_length < 2:
            raise ValueError("encoder.shape: sizes must be positive, context_length at least 2.")
        if self.image_size % divisor:
            raise ValueError(
                f"encoder.shape.image_size is {self.image_size}: give a multiple of {divisor}."
            )

    def model_cfg(self, *, vocab_size: int) -> dict[str, Any]:
        """Arguments of `open_clip.model.CLIP` for a tokenizer of `vocab_size` ids."""
        vision: dict[str, Any] = {"image_size": self.image_size, "width": self.image_width}
        if self.image_tower == "vit":
            vision |= {"layers": self.image_layers, "patch_size": self.patch_size}
            vision |= {"head_width": 32, "mlp_ratio": 2.0, "pool_type": "avg"}
        else:
            vision |= {"layers": [self.image_layers] * 4, "head_width": 32}
        text = {
            "context_length": self.context_length,
            "vocab_size": vocab_size,
            "width": self.text_width,
            "heads": self.text_width // 32,
            "layers": self.text_layers,
            "mlp_ratio": 2.0,
        }
        return {"embed_dim": self.embed_dim, "vision_cfg": vision, "text_cfg": text}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderTrainingConfig:
    """Everything that changes the bytes of a fitted encoder."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    shape: EncoderShape = field(default_factory=EncoderShape)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            steps=400, learning_rate=4e-3, warmup_steps=40, validate_every=100
        )
    )
    batch_size: int = 192
    """Pairs a step, over all ranks."""
    seed: int = 0
    """Of the weights, the order and the noise."""
    token_std: float = 1.0
    """Standard deviation of the token embeddings at the start. open_clip starts at 0.02, which
    forgets what a piece of a word is; at 1 the text tower starts as a random projection of the bag
    of pieces, so that captions that share rare pieces stay close, words unseen in training too."""
    text_tower: Literal["learned", "bag"] = "learned"
    """`bag`: whitened bags of word pieces, not trained (`racm3.training.bag_start`); for corpora of
    thousands, where a learned one forgets the words that it was not shown."""
    token_lr_scale: float = 1.0
    """Factor on the learning rate of the token embeddings, which do not decay."""
    image_contrast: float = 0.0
    """Weight of a second contrast, of images whose captions are alike; half of a batch are then
    partners of the other half (`racm3.training.alike`). 0: CLIP's loss alone."""
    alike: float = 0.7
    """Least cosine of two captions that are alike, by the text tower as it starts."""

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError("encoder.batch_size must be at least 2: a pair needs a contrast.")
        if not (self.image_contrast >= 0 and 0 < self.alike <= 1):
            raise ValueError("encoder.image_contrast must be at least 0, encoder.alike in (0, 1].")
        if self.image_contrast and self.batch_size % 2:
            raise ValueError(
                f"encoder.batch_size is {self.batch_size}: with image_contrast it must be even."
            )
        for name in ("token_std", "token_lr_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"encoder.{name} is {getattr(self, name)}: it must be above 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Captions and their images, by position."""

    captions: Sequence[str]
    images: Sequence[NDArray[np.uint8]]
    """(H, W, 3) uint8 each, of any size."""

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.images):
            raise ValueError(
                f"{len(self.captions)} captions, {len(self.images)} images: give one for each."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedEncoder:
    """What training gives; publish `spec` and the model's state, then `load_clip` reads them."""

    model: nn.Module
    """An `open_clip.model.CLIP` with the best weights, in evaluation mode."""
    spec: ClipSpec
    """Its config and tokenizer; `pretrained` is for the caller to fill with the file's path."""
    result: FitResult


class EncoderTask:
    """The contrastive task: `racm3.training.fit.FitTask`."""

    def __init__(
        self, pairs: Pairs, config: EncoderTrainingConfig, tokenizer: EncoderTokenizer
    ) -> None:
        if len(pairs.captions) < config.batch_size:
            raise ValueError(
                f"The encoder has {len(pairs.captions)} pairs, fewer than batch_size "
                f"{config.batch_size}: give more pairs or a smaller batch."
            )
        self.config, self.tokenizer = config, tokenizer
        self.captions = list(pairs.captions)
        self.images = prepare_images(pairs.images, config.shape.image_size)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.bare = make_clip(config.shape.model_cfg(vocab_size=tokenizer.vocab_size))
            self._start_tokens()
        ids = self._ids(self.captions)
        if config.text_tower == "bag":
            start_bag_tower(self.bare, ids)
            lock_text_tower(self.bare)
        self._caption = torch.from_numpy(np.unique(self.captions, return_inverse=True)[1])
        self._partners: list[NDArray[np.int64]] = []
        if config.image_contrast:
            self._partners = alike(text_vectors(self.bare, ids), config.alike)
        self.model: nn.Module = self.bare
        self._losses: dict[tuple[int, int], nn.Module] = {}
        self._pair_flops = _pair_flops(self.bare, config.shape)

    def batch(self, step: int, *, rank: int, world_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs of a step: a pure function of (seed, step, rank).

        Each epoch is a new permutation; its last, incomplete batch is left out. With
        `image_contrast` the second half are partners of the first, which an epoch goes through.

        Returns:
            Images [B, 3, S, S] in about [-1, 1], text ids int64 [B, context_length], and captions
            int64 [B], equal where captions are.

        Raises:
            ValueError: `batch_size` cannot be dealt evenly to the ranks, or to more than one with
                `image_contrast`, which compares what one rank has.
        """
        size, seed = self.config.batch_size, self.config.seed
        if size % world_size:
            raise ValueError(f"batch_size {size} is not a multiple of {world_size} workers.")
        if self._partners and world_size > 1:
            raise ValueError("encoder.image_contrast needs one worker: give one, or set it to 0.")
        rng = _generator(_NOISE, seed, step, rank)
        fresh = size // 2 if self._partners else size
        epoch, within = divmod(step, len(self.captions) // fresh)
        order = _generator(_SHUFFLE, seed, epoch).permutation(len(self.captions))
        share = fresh // world_size
        start = within * fresh + rank * share
        chosen = order[start : start + share]
        if self._partners:
            chosen = np.concatenate([chosen, pick_partners(chosen, self._partners, rng)])
        noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
        images = augment_images(self.images[chosen], self.config.augment, noise)
        rate = self.config.augment.drop_words
        captions = [drop_words(self.captions[i], rate, rng) for i in chosen]
        return images, self._ids(captions), self._caption[chosen]

    def loss(self, step: int, *, rank: int, world_size: int) -> tuple[Tensor, dict[str, float]]:
        """CLIP's symmetric cross-entropy over all ranks' pairs, and what to log.

        With `image_contrast`, that of partners' images beside it.
        """
        device = next(self.bare.parameters()).device
        images, ids, caption = self.batch(step, rank=rank, world_size=world_size)
        image, text, scale = self.model(images.to(device), ids.to(device))
        logged = {"scale": scale.item(), "tokens": float((ids != 0).sum())}
        if self._partners:
            caption = caption.to(device)
            clip = unmistakable_clip_loss(image, text, scale, caption)
            between = image_contrast(image, caption)
            value = clip + self.config.image_contrast * between
            logged |= {"clip_loss": clip.item(), "image_loss": between.item()}
        else:
            value = self._loss(rank, world_size)(image, text, scale)
        return value, {"loss": value.item()} | logged

    def step_flops(self, step: int) -> float:
        """Three times two FLOPs a weight and token or patch it meets; equal at every step."""
        return 3.0 * self._pair_flops * self.config.batch_size

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Matrices decay; vectors and token embeddings (rare ones would fade) do not."""
        tokens: Any = self._tokens
        learned = [p for p in self.bare.parameters() if p.requires_grad]
        rest = [p for p in learned if p is not tokens]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        if tokens.requires_grad:
            scale = self.config.token_lr_scale
            groups.append({"params": [tokens], "weight_decay": 0.0, "lr_scale": scale})
        return groups

    @property
    def _tokens(self) -> Any:
        return self.bare.token_embedding.weight  # type: ignore[union-attr]

    @torch.no_grad()
    def _start_tokens(self) -> None:
        """Tokens far apart; the end token, where the caption is read, starts empty."""
        self._tokens.normal_(std=self.config.token_std)
        self._tokens[self.tokenizer.end_id] = 0.0

    def after_step(self, step: int) -> None:
        """Bounds the logit scale at 100, as CLIP does."""
        self.bare.logit_scale.clamp_(0, _LARGEST_SCALE)  # type: ignore[operator]

    def validator(self, pairs: Pairs) -> Callable[[nn.Module], dict[str, float]]:
        """Contrastive loss and R@1 on held-out pairs (one batch, no noise), for `fit`."""
        images = prepare_images(pairs.images, self.config.shape.image_size)
        ids = self._ids(list(pairs.captions))

        def validate(model: nn.Module) -> dict[str, float]:
            device = next(model.parameters()).device
            image, text, scale = model(images.to(device), ids.to(device))
            own = torch.arange(len(ids), device=device)
            scores = text @ image.T
            return {
                "loss": float(self._loss(0, 1)(image, text, scale)),
                "text_to_image_r1": float((scores.argmax(1) == own).float().mean()),
                "image_to_text_r1": float((scores.argmax(0) == own).float().mean()),
            }

        return validate

    def _ids(self, captions: list[str]) -> Tensor:
        return self.tokenizer(captions, context_length=self.config.shape.context_length)

    def _loss(self, rank: int, world_size: int) -> nn.Module:
        from open_clip import ClipLoss

        if (rank, world_size) not in self._losses:
            shared = world_size > 1
            self._losses[rank, world_size] = ClipLoss(
                local_loss=shared, gather_with_grad=shared, rank=rank, world_size=world_size
            )
        return self._losses[rank, world_size]


def train_encoder(
    pairs: Pairs,
    config: EncoderTrainingConfig,
    *,
    validation: Pairs | None = None,
    checkpoint_dir: Path | None = None,
    report: Callable[[LogRow], None] | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> FittedEncoder:
    """Learns the tokenizer, then both towers; resumes from `checkpoint_dir`.

    Args:
        pairs: What is fitted.
        config: Shape, noise, schedule.
        validation: Held-out pairs for early stopping (a few hundred).
        checkpoint_dir: See `fit`.
        report: See `fit`.
        device: Where to train.
        options: Further arguments of `fit`: wrap, rank, world_size, after_checkpoint.

    Raises:
        ValueError: Fewer pairs than one batch.
    """
    size = config.shape.vocab_size
    tokenizer = EncoderTokenizer.train(pairs.captions, vocab_size=size)
    task = EncoderTask(pairs, config, tokenizer)
    task.bare.to(device)
    validate = None if validation is None else task.validator(validation)
    result = fit(
        task,
        config.fit,
        checkpoint_dir=checkpoint_dir,
        validate=validate,
        report=report,
        **options,
    )
    spec = ClipSpec(
        model=config.shape.model_cfg(vocab_size=tokenizer.vocab_size),
        tokenizer_json=tokenizer.to_json(),
    )
    return FittedEncoder(model=task.bare.eval(), spec=spec, result=result)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _pair_flops(model: nn.Module, shape: EncoderShape) -> float:
    """Forward FLOPs of one pair: 2 x weights x positions (of a resnet, a grid of 8x8 cells)."""
    image, text = _weights(model.visual), _weights(model.transformer)
    cell = shape.patch_size if shape.image_tower == "vit" else 8
    return 2.0 * (image * (shape.image_size / cell) ** 2 + text * shape.context_length)


def _weights(module: Any) -> int:
    return sum(int(parameter.numel()) for parameter in module.parameters())
