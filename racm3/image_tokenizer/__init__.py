"""Image tokenizers: the protocol, VQGAN and what its training needs, and public checkpoints."""

from __future__ import annotations

from racm3.image_tokenizer.base import ImageTokenizer
from racm3.image_tokenizer.checkpoint_file import read_state_dict
from racm3.image_tokenizer.public import PublicVQ, public_vq_of
from racm3.image_tokenizer.public_layout import infer_spec
from racm3.image_tokenizer.public_spec import PRESETS, PublicVQSpec
from racm3.image_tokenizer.stored import load_image_tokenizer, save_image_tokenizer
from racm3.image_tokenizer.vqgan import VQGAN, VQGAN_F8_8192, VQGAN_TINY, VQGANConfig, vqgan_of

__all__ = [
    "PRESETS",
    "VQGAN",
    "VQGAN_F8_8192",
    "VQGAN_TINY",
    "ImageTokenizer",
    "PublicVQ",
    "PublicVQSpec",
    "VQGANConfig",
    "infer_spec",
    "load_image_tokenizer",
    "public_vq_of",
    "read_state_dict",
    "save_image_tokenizer",
    "vqgan_of",
]
