"""Captions and images as unit vectors of one space."""

from racm3.encoder.base import Images, MultimodalEncoder, Vectors, unit
from racm3.encoder.clip import ClipEncoder, ClipSpec, EncoderError, load_clip
from racm3.encoder.tokenizer import EncoderTokenizer

__all__ = [
    "ClipEncoder",
    "ClipSpec",
    "EncoderError",
    "EncoderTokenizer",
    "Images",
    "MultimodalEncoder",
    "Vectors",
    "load_clip",
    "unit",
]
