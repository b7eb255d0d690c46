"""An image file from a stranger to 8-bit sRGB pixels of one orientation, or the reason why not.

Pure: bytes in, pixels out, no state. Pillow decodes, and only the formats named here; the size in
the header is judged before a pixel is decoded. Run it on hostile files in `pipelines.decode.child`
only: a decoder may crash.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

__all__ = [
    "NormalizeOptions",
    "Normalized",
    "Outcome",
    "UnusableError",
    "difference_hash",
    "framed",
    "normalize",
    "pixel_sha256",
    "sniff",
]


class Outcome(StrEnum):
    """What can become of a downloaded file: a closed list."""

    KEPT = "kept"
    NOT_AN_IMAGE = "not_an_image"
    """No image format that we know begins so, or a header that says nothing."""
    TRUNCATED = "truncated"
    """The pixels end too early."""
    TOO_LARGE = "too_large"
    """More pixels, or a longer side, than the limit; told from the header alone."""
    TOO_SMALL = "too_small"
    BAD_ASPECT = "bad_aspect"
    FORMAT_REFUSED = "format_refused"
    """An image, but of a format that is not decoded here."""
    DECODER_FAILED = "decoder_failed"
    """The decoder gave up, crashed, or used up its memory or time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizeOptions:
    """Size limits, and the shape of the result."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    image_size: int | None = None
    """Side of the square that is cut from the middle after scaling, pixels; None: as it is."""
    min_side: int = 1
    """Shortest side of the file that is accepted, pixels."""
    max_side: int = 16_384
    """Longest side of the file, pixels."""
    max_pixels: int = 50_000_000
    """Most pixels of the file."""
    max_aspect: float = 20.0
    """Long side over short side."""

    def __post_init__(self) -> None:
        if self.image_size is not None and not 1 <= self.image_size <= 4096:
            raise ValueError("image_size must lie in 1..4096")
        if min(self.min_side, self.max_side, self.max_pixels) < 1 or self.max_aspect < 1:
            raise ValueError("size limits must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalized:
    """A normalised image and where it comes from."""

    png: bytes
    """RGB, 8 bit, no metadata; equal pixels give equal bytes."""
    width: int
    """Of the PNG, pixels."""
    height: int
    file_width: int
    """Of the file, as it is looked at (orientation applied), pixels."""
    file_height: int
    mode: str
    """Pillow's pixel mode of the file."""
    frames: int
    """In the file; the first is kept."""
    pixel_sha256: str
    perceptual_hash: str
    """64-bit difference hash, 16 hexadecimal digits."""


class UnusableError(Exception):
    """A file that gives no image."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


_ACCEPTED = ("JPEG", "PNG", "WEBP", "GIF")
_REFUSED_MAGIC = (
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\1\0", "ICO"),
    (b"8BPS", "PSD"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"SIMPLE  =", "FITS"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xffO\xffQ", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
)
_PNG_LEVEL = 6
_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def normalize(data: bytes, options: NormalizeOptions) -> Normalized:
    """Decodes a file and brings it to 8-bit sRGB.

    The first frame is taken, EXIF orientation applied, an embedded colour profile converted to
    sRGB, 16 bits scaled to 8, transparency laid onto white.

    Raises:
        UnusableError: with the outcome.
    """
    kind = sniff(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no news
        image = _open(data, kind)
        _check_size(image.size, options)
        mode, frames = image.mode, _frames(image)
        turn = _TRANSPOSITIONS.get(_orientation(image))
        _load(image)
        rgb = _to_rgb(image)
        if turn is not None:
            rgb = rgb.transpose(turn)
        file_width, file_height = rgb.size
        rgb = _shaped(rgb, options.image_size)
    return Normalized(
        png=_png(rgb),
        width=rgb.width,
        height=rgb.height,
        file_width=file_width,
        file_height=file_height,
        mode=mode,
        frames=frames,
        pixel_sha256=pixel_sha256(np.asarray(rgb)),
        perceptual_hash=difference_hash(rgb),
    )


def sniff(data: bytes) -> str:
    """The format, by the first bytes: JPEG, PNG, WEBP or GIF.

    Raises:
        UnusableError: for another image format, or none.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1"):
        raise UnusableError(Outcome.FORMAT_REFUSED, "AVIF or HEIF is not decoded here")
    for magic, name in _REFUSED_MAGIC:
        if data.startswith(magic):
            raise UnusableError(Outcome.FORMAT_REFUSED, f"{name} is not decoded here")
    if b"<svg" in data[:1024].lower():
        raise UnusableError(Outcome.FORMAT_REFUSED, "SVG is not decoded here")
    raise UnusableError(Outcome.NOT_AN_IMAGE, "it does not begin like an image")


def pixel_sha256(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of height and width (32 bit each) and the RGB bytes of an (H, W, 3) array."""
    height, width = pixels.shape[:2]
    return hashlib.sha256(struct.pack(">II", height, width) + pixels.tobytes()).hexdigest()


def difference_hash(image: Image.Image) -> str:
    """64-bit difference hash: each grey value of a 9x8 thumbnail against its right neighbour.

    Returns:
        16 hexadecimal digits, row-major, most significant bit first.
    """
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = small[:, 1:] > small[:, :-1]
    return np.packbits(bits).tobytes().hex()


# --- decoding ---------------------------------------------------------------------------------


def _open(data: bytes, kind: str) -> Image.Image:
    """Reads the header with the one decoder that the magic names."""
    assert kind in _ACCEPTED
    try:
        return Image.open(BytesIO(data), formats=(kind,))
    except Image.DecompressionBombError as error:
        raise UnusableError(Outcome.TOO_LARGE, "far more pixels than the limit") from error
    except UnidentifiedImageError as error:
        raise UnusableError(Outcome.NOT_AN_IMAGE, f"its {kind} header is unreadable") from error
    except Exception as error:
        raise _failure(error) from error


def _check_size(size: tuple[int, int], options: NormalizeOptions) -> None:
    long, short = max(size), min(size)
    shape = f"{size[0]} x {size[1]} pixels"
    if short < 1:
        raise UnusableError(Outcome.NOT_AN_IMAGE, f"{shape}: it has none")
    if long > options.max_side or long * short > options.max_pixels:
        raise UnusableError(Outcome.TOO_LARGE, shape)
    if long > options.max_aspect * short:
        raise UnusableError(Outcome.BAD_ASPECT, shape)
    if short < options.min_side:
        raise UnusableError(Outcome.TOO_SMALL, shape)


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:
        raise _failure(error) from error


def _failure(error: Exception) -> UnusableError:
    detail = f"{type(error).__name__}: {error}"
    said = str(error).lower()
    early = isinstance(error, EOFError) or any(
        word in said for word in ("truncated", "not enough image data", "unrecognized data stream")
    )
    return UnusableError(Outcome.TRUNCATED if early else Outcome.DECODER_FAILED, detail)


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:
        return 1  # a broken later frame does not spoil the first


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1  # broken metadata does not spoil the pixels


# --- colour -----------------------------------------------------------------------------------


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit sRGB pixels of any mode that the accepted formats have."""
    if image.mode.startswith("I"):
        image = _eight_bit(image)
    profile = image.info.get("icc_profile")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        clear = image.convert("RGBA")
        colour = _to_srgb(clear.convert("RGB"), profile)
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(colour, mask=clear.getchannel("A"))
        return white
    if image.mode in ("P", "1"):
        image = image.convert("RGB")
    return _to_srgb(image, profile)


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey, scaled to 8 with rounding."""
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts by the embedded profile; a profile that is broken or does not fit is ignored."""
    if profile and image.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


_SRGB = ImageCms.createProfile("sRGB")


# --- shape and encoding -----------------------------------------------------------------------


def framed(
    size: tuple[int, int], image_size: int | None
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """How an image of `size` (width, height) is brought to the square of `image_size`, pixels.

    Returns:
        Width and height after scaling the short side, and left, top, right, bottom of the square
        in the middle of that; the image as it is where `image_size` is None.
    """
    if image_size is None or size == (image_size, image_size):
        return size, (0, 0, *size)
    short = min(size)
    width, height = (max(image_size, round(side * image_size / short)) for side in size)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return (width, height), (left, top, left + image_size, top + image_size)


def _shaped(image: Image.Image, size: int | None) -> Image.Image:
    """Scales the short side to `size` and cuts a square from the middle."""
    scaled, square = framed(image.size, size)
    if square == (0, 0, *image.size):
        return image
    return image.resize(scaled, Image.Resampling.LANCZOS).crop(square)


def _png(image: Image.Image) -> bytes:
    sink = BytesIO()
    bare = Image.fromarray(np.asarray(image))  # no metadata rides along
    bare.save(sink, format="PNG", optimize=False, compress_level=_PNG_LEVEL)
    return sink.getvalue()
