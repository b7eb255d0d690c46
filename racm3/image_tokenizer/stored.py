"""Image tokenizers as files: a JSON that says which, and its tensors.

`KINDS` is where another kind of tokenizer enters: what its JSON holds, and how it is made of both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from racm3.image_tokenizer.base import ImageTokenizer
from racm3.image_tokenizer.public import PublicVQ, public_state, public_vq_of
from racm3.image_tokenizer.public_spec import PublicVQSpec
from racm3.image_tokenizer.vqgan import VQGAN, VQGANConfig, vqgan_of

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

Device = str | torch.device


def _vqgan(values: Mapping[str, Any], state: Mapping[str, Tensor], device: Device) -> VQGAN:
    config = VQGANConfig(**{**values, "widths": tuple(values["widths"])})
    return vqgan_of(config, state, device=device)


def _public(values: Mapping[str, Any], state: Mapping[str, Tensor], device: Device) -> PublicVQ:
    tuples = {name: tuple(values[name]) for name in ("multipliers", "attention_levels")}
    return public_vq_of(PublicVQSpec(**{**values, **tuples}), state, device=device)


KINDS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Tensor], Device], ImageTokenizer]] = {
    "vqgan": _vqgan,
    "public": _public,
}
"""Kind -> function that makes one of what its JSON says and its tensors."""


def save_image_tokenizer(tokenizer: VQGAN | PublicVQ, folder: Path) -> dict[str, Path]:
    """Writes a tokenizer's files into a folder, which is made when missing; returns them by name.

    Equal tokenizers give equal bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, VQGAN):
        values, state = asdict(tokenizer.config), tokenizer.state_dict()
    else:
        values, state = {"kind": "public"} | asdict(tokenizer.spec), public_state(tokenizer)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    return {name: folder / name for name in (CONFIG_FILE, WEIGHTS_FILE)}


def load_image_tokenizer(config: Path, weights: Path, *, device: Device = "cpu") -> ImageTokenizer:
    """Reads what `save_image_tokenizer` wrote, in evaluation mode.

    Args:
        config: The JSON; without a ``kind`` it is that of a `VQGAN`.
        weights: The tensors.
        device: Where the tokenizer shall be.

    Raises:
        ValueError: The JSON does not say which tokenizer, or the tensors do not fit it.
    """
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        make = KINDS[values.pop("kind", "vqgan")]
        return make(values, load_file(weights), device)
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{config} does not say which image tokenizer it is: {type(error).__name__} {error}."
        ) from error
