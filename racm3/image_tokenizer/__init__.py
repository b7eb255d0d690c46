"""Image tokenizers: the protocol, VQGAN, and what its training needs."""

from __future__ import annotations

from racm3.image_tokenizer.base import ImageTokenizer
from racm3.image_tokenizer.vqgan import (
    VQGAN,
    VQGAN_F8_8192,
    VQGAN_TINY,
    VQGANConfig,
    load_vqgan,
    save_vqgan,
    vqgan_from_state,
)

__all__ = [
    "IMAGE_TOKENIZERS",
    "VQGAN",
    "VQGAN_F8_8192",
    "VQGAN_TINY",
    "ImageTokenizer",
    "VQGANConfig",
    "load_vqgan",
    "save_vqgan",
    "vqgan_from_state",
]

IMAGE_TOKENIZERS = {"vqgan": load_vqgan}
"""Kind -> function that loads one from a folder."""
