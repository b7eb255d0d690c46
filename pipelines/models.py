"""Published models: how their files are written and read back.

Every model is a `config.json` and a `model.safetensors`; nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage_schemas.fingerprint import canonical_json, sha256_file

if TYPE_CHECKING:
    from racm3.encoder.clip import ClipEncoder
    from racm3.generator.transformer import Generator
    from racm3.image_tokenizer.base import ImageTokenizer
    from racm3.sequence.layout import Layout
    from racm3.text_tokenizer import TextTokenizer

__all__ = [
    "CONFIG",
    "TOKENIZER",
    "WEIGHTS",
    "LoadedGenerator",
    "device",
    "load_encoder",
    "load_generator",
    "load_image_tokenizer",
    "load_text_tokenizer",
    "pin_threads",
    "save_generator",
    "weights_digest",
]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"

Files = Mapping[str, Path]


def device() -> str:
    """The device that models run on here."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def pin_threads(threads: int = 1) -> None:
    """Fixes torch's threads: sums on the CPU depend on how they are split."""
    import torch

    torch.set_num_threads(threads)


def weights_digest(path: str) -> str:
    """SHA-256 of a weights file; read again only when its size or time of change is another."""
    status = Path(path).stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _file_digest(path: str, size: int, changed: int) -> str:
    return sha256_file(Path(path))


def load_text_tokenizer(files: Files) -> TextTokenizer:
    """Reads a `text_tokenizer` artifact."""
    from racm3.text_tokenizer import TextTokenizer

    return TextTokenizer.from_json(files[TOKENIZER].read_text(encoding="utf-8"))


def load_image_tokenizer(files: Files) -> ImageTokenizer:
    """Reads an `image_tokenizer` artifact, fitted here or public."""
    from racm3.image_tokenizer.stored import load_image_tokenizer as load

    return load(files[CONFIG], files[WEIGHTS], device=device())


def load_encoder(files: Files) -> ClipEncoder:
    """Reads an `encoder` or `scorer` artifact: its spec, with the weights beside it."""
    from racm3.encoder.clip import ClipSpec, load_clip

    spec = ClipSpec(**json.loads(files[CONFIG].read_text(encoding="utf-8")))
    return load_clip(replace(spec, pretrained=str(files[WEIGHTS])), device=device())


@dataclass(frozen=True, slots=True)
class LoadedGenerator:
    """A generator in evaluation mode, and the layout it was trained with."""

    model: Generator
    layout: Layout


def save_generator(folder: Path, model: Generator, layout: Layout) -> dict[str, Path]:
    """Writes a generator's files; returns them by name."""
    from safetensors.torch import save_file

    body: dict[str, Any] = {
        "generator": asdict(model.config),
        "vocabulary": asdict(model.vocabulary),
        "layout": {
            "image_tokens": layout.image_tokens,
            "max_text_tokens": layout.max_text_tokens,
        },
    }
    (folder / CONFIG).write_bytes(canonical_json(body))
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    return {CONFIG: folder / CONFIG, WEIGHTS: folder / WEIGHTS}


def load_generator(files: Files) -> LoadedGenerator:
    """Reads a `generator` artifact."""
    import torch
    from safetensors.torch import load_file

    from racm3.generator.config import GeneratorConfig
    from racm3.generator.transformer import Generator
    from racm3.sequence.layout import Layout
    from racm3.vocabulary import Vocabulary

    body = json.loads(files[CONFIG].read_text(encoding="utf-8"))
    vocabulary = Vocabulary(**body["vocabulary"])
    config = GeneratorConfig(**body["generator"])
    model = Generator(config, vocabulary, generator=torch.Generator().manual_seed(0))
    model.load_state_dict(load_file(files[WEIGHTS]))
    layout = Layout(vocabulary=vocabulary, **body["layout"])
    return LoadedGenerator(model.to(device()).eval(), layout)
