"""open_clip models as `MultimodalEncoder`: by name and weights, or of our own shape."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from racm3.encoder.base import Images, Vectors, unit
from racm3.encoder.tokenizer import EncoderTokenizer

_CLIP_VOCABULARY = 49408


class EncoderError(ValueError):
    """An encoder cannot be made: the sentence says what to change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSpec:
    """Which CLIP. RA-CM3 took ViT-L/14 (arXiv:2211.12561)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    model: str | dict[str, Any]
    """A name of `open_clip.list_models()`, or arguments of `open_clip.model.CLIP`."""
    pretrained: str | None = None
    """A tag of open_clip, or a path of weights (safetensors, or a state dict without code)."""
    tokenizer_json: str | None = None
    """`EncoderTokenizer.to_json()`; None: the model's own tokenizer."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("encoder.model is empty: give an open_clip name or a model config.")


class ClipEncoder:
    """A frozen CLIP; every method is a function of its arguments and the weights.

    Rows are computed in batches of `batch_size`, so that a vector depends on its neighbours by
    rounding only (about 1e-6).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenize: Callable[[list[str]], Tensor],
        preprocess: Callable[[NDArray[np.uint8]], Tensor],
        batch_size: int = 256,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._tokenize, self._preprocess = tokenize, preprocess
        self._batch_size = batch_size
        self._dim = len(self._text([""])[0])

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self._model.parameters()).device

    def encode_text(self, captions: Sequence[str]) -> Vectors:
        """Captions to [B, d] unit vectors."""
        return self._stack(self._text(list(part)) for part in _parts(captions, self._batch_size))

    def encode_images(self, images: Images) -> Vectors:
        """Images (H, W, 3) uint8 of any size to [B, d] unit vectors.

        Raises:
            ValueError: An array is not (H, W, 3) uint8.
        """
        return self._stack(self._images(part) for part in _parts(images, self._batch_size))

    @torch.inference_mode()
    def _text(self, captions: list[str]) -> NDArray[np.float32]:
        ids = self._tokenize(captions).to(self.device)
        return _numpy(self._model.encode_text(ids))  # type: ignore[operator]

    @torch.inference_mode()
    def _images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        batch = torch.stack([self._preprocess(_checked(image)) for image in images])
        return _numpy(self._model.encode_image(batch.to(self.device)))  # type: ignore[operator]

    def _stack(self, parts: Iterator[NDArray[np.float32]]) -> Vectors:
        rows = list(parts)
        return unit(np.concatenate(rows)) if rows else np.zeros((0, self._dim), np.float32)


def load_clip(spec: ClipSpec, *, device: str | torch.device = "cpu") -> ClipEncoder:
    """Builds the encoder a spec names.

    Raises:
        EncoderError: Unknown model, tag or file, weights of another shape, weights that would
            have to be downloaded and could not, or no tokenizer for the vocabulary.
    """
    model = _clip_model(spec)
    if isinstance(spec.model, str):
        return _named_encoder(model, spec, device)
    return encoder_of(model, spec, device=device)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTower:
    """The image side of a frozen CLIP, as a differentiable function of pixels."""

    module: nn.Module
    """open_clip's tower."""
    size: int
    """Pixels a side that it reads."""
    mean: tuple[float, ...]
    """Subtracted from each channel of pixels in [0, 1]."""
    std: tuple[float, ...]
    """What each channel is divided by, then."""

    def intermediates(self, images: Tensor) -> list[Tensor]:
        """Returns the feature maps after each block, [B, C, h, w] each.

        Args:
            images: [B, 3, H, W], in [0, 1]; resized (bilinear, without cropping) where needed.
        """
        if images.shape[2:] != (self.size, self.size):
            images = nn.functional.interpolate(
                images, (self.size, self.size), mode="bilinear", antialias=True
            )
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        maps: list[Tensor] = self.module.forward_intermediates(  # type: ignore[operator]
            (images - mean) / std, intermediates_only=True
        )["image_intermediates"]
        return maps


def load_image_tower(spec: ClipSpec, *, device: str | torch.device = "cpu") -> ImageTower:
    """Builds the image tower of the CLIP a spec names, with its weights.

    Raises:
        EncoderError: As of `load_clip`, or there are no weights.
    """
    import open_clip

    if spec.pretrained is None:
        raise EncoderError("Features of random weights mean nothing: give `pretrained`, too.")
    model = _clip_model(spec).eval().requires_grad_(False)
    tower = model.visual
    assert isinstance(tower, nn.Module)
    mean = std = (0.5, 0.5, 0.5)  # what `prepare_images` does for models of our own shape
    if isinstance(spec.model, str):
        config = open_clip.get_model_preprocess_cfg(model)
        mean, std = tuple(config["mean"]), tuple(config["std"])
    size = _side(tower.image_size)  # type: ignore[arg-type]
    return ImageTower(module=tower.to(device), size=size, mean=mean, std=std)


def _clip_model(spec: ClipSpec) -> nn.Module:
    if isinstance(spec.model, str):
        return _known_model(spec.model, spec.pretrained)
    model = make_clip(spec.model)
    if spec.pretrained is not None:
        _load_file(model, spec.pretrained)
    return model


def make_clip(model_cfg: dict[str, Any]) -> nn.Module:
    """An `open_clip.model.CLIP` with fresh weights, drawn from torch's global generator.

    Raises:
        EncoderError: open_clip refuses the config.
    """
    from open_clip.model import CLIP

    try:
        model: nn.Module = CLIP(**model_cfg)
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        raise EncoderError(
            f"open_clip cannot build encoder.model {model_cfg}: {error}. "
            "Give the arguments of open_clip.model.CLIP (embed_dim, vision_cfg, text_cfg)."
        ) from error
    return model


def encoder_of(
    model: nn.Module, spec: ClipSpec, *, device: str | torch.device = "cpu"
) -> ClipEncoder:
    """Wraps a model of our own shape whose weights are there already (after training).

    Raises:
        EncoderError: The tokenizer's vocabulary is not the model's.
    """
    size = _side(model.visual.image_size)  # type: ignore[union-attr, arg-type]
    return ClipEncoder(
        model.to(device),
        tokenize=_tokenize_with(model, spec),
        preprocess=lambda image: torch.from_numpy(_normalised(image, size)),
    )


def prepare_images(images: Sequence[NDArray[np.uint8]], size: int) -> Tensor:
    """Images (H, W, 3) uint8 to [B, 3, size, size] in [-1, 1], as `ClipEncoder` sees them."""
    return torch.stack([torch.from_numpy(_normalised(_checked(i), size)) for i in images])


def _named_encoder(model: nn.Module, spec: ClipSpec, device: str | torch.device) -> ClipEncoder:
    import open_clip
    from open_clip.transform import image_transform_v2

    config = open_clip.get_model_preprocess_cfg(model)
    transform = image_transform_v2(open_clip.transform.PreprocessCfg(**config), is_train=False)
    return ClipEncoder(
        model.to(device),
        tokenize=_tokenize_with(model, spec),
        preprocess=lambda image: transform(Image.fromarray(image)),
    )


def _known_model(name: str, pretrained: str | None) -> nn.Module:
    import open_clip

    known = open_clip.list_models()
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3)) or "see open_clip's list"
        raise EncoderError(f"open_clip knows no model '{name}': did you mean {near}?")
    if pretrained is None:
        raise EncoderError(
            f"encoder.pretrained is missing: model '{name}' needs a weights file or a tag."
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if Path(pretrained).is_file():
        kwargs = {"pretrained_text": False}  # towers of timm and transformers stay offline
        model: nn.Module = open_clip.create_model(name, load_weights=False, **kwargs)
        _load_file(model, pretrained)
        return model
    if pretrained not in tags:
        raise EncoderError(
            f"encoder.pretrained '{pretrained}' is neither a file nor a tag of '{name}' "
            f"(tags: {', '.join(tags) or 'none'})."
        )
    try:
        return open_clip.create_model(name, pretrained=pretrained)  # type: ignore[no-any-return]
    except Exception as error:  # whatever the hub, urllib or the cache raise
        raise EncoderError(
            f"The weights '{pretrained}' of '{name}' are not on this machine and could not be "
            f"downloaded ({type(error).__name__}): fetch them elsewhere and give the file's path "
            "as encoder.pretrained."
        ) from error


def _load_file(model: nn.Module, path: str) -> None:
    import open_clip

    if not Path(path).is_file():
        raise EncoderError(
            f"encoder.pretrained '{path}' is no file: give an existing weights file."
        )
    try:
        open_clip.load_checkpoint(model, path, strict=True, weights_only=True)
    except Exception as error:  # safetensors, torch and zip errors have no common base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoderError(
            f"The weights file '{path}' does not fit the model ({reason}): give a safetensors "
            "file or a plain state dict of this very model."
        ) from error


def _tokenize_with(model: nn.Module, spec: ClipSpec) -> Callable[[list[str]], Tensor]:
    if spec.tokenizer_json is not None:
        own = EncoderTokenizer.from_json(spec.tokenizer_json)
        if own.vocab_size != model.vocab_size:
            raise EncoderError(
                f"The tokenizer has {own.vocab_size} ids, the model {model.vocab_size}: "
                "give the tokenizer the model was trained with."
            )
        length = int(model.context_length)  # type: ignore[arg-type]
        return lambda captions: own(captions, context_length=length)
    import open_clip

    if isinstance(spec.model, str):
        try:
            return open_clip.get_tokenizer(spec.model)  # type: ignore[no-any-return]
        except Exception as error:  # the hub's errors have no common base
            raise EncoderError(
                f"The tokenizer of '{spec.model}' is not on this machine and could not be "
                "downloaded: choose a model with open_clip's built-in tokenizer."
            ) from error
    if model.vocab_size != _CLIP_VOCABULARY:
        raise EncoderError(
            f"The model has {model.vocab_size} text ids and no tokenizer: give tokenizer_json."
        )
    return open_clip.SimpleTokenizer(context_length=model.context_length)  # type: ignore[no-any-return]


def _parts(rows: Any, size: int) -> Iterator[Any]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _numpy(features: Tensor) -> NDArray[np.float32]:
    return np.asarray(features.float().cpu().numpy(), dtype=np.float32)


def _side(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"An image is {image.dtype} {image.shape}: the encoder takes uint8 (H, W, 3)."
        )
    return image


def _normalised(image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """One image resized without cropping, (3, size, size) in [-1, 1]."""
    if image.shape[:2] != (size, size):
        picture = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
        image = np.asarray(picture, dtype=np.uint8)
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 127.5 - 1
