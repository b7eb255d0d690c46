"""Files to pixels: what passes, what is refused and why, and that colours are right."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pipelines.decode.normalize import (
    NormalizeOptions,
    UnusableError,
    difference_hash,
    framed,
    normalize,
    pixel_sha256,
)

AS_IS = NormalizeOptions()
RED, BLUE = (200, 30, 40), (20, 30, 220)


def saved(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def two_colors(width=40, height=20):
    """Red left, blue right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def pixels(data, options=AS_IS):
    return np.asarray(Image.open(io.BytesIO(normalize(data, options).png)))


def png_of(width, height, bits=8, color=2, data=b""):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GOOD = saved(two_colors(), "PNG")
NOISE = saved(
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), "PNG"
)


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"", "not_an_image"),
        (b"<html>404</html>", "not_an_image"),
        (b"PK\x03\x04zip", "not_an_image"),
        (b"%PDF-1.7", "not_an_image"),
        (b"\xff\xd8\xff\xe0 not a jpeg", "truncated"),
        (b"GIF89a", "not_an_image"),
        (b"RIFF\0\0\0\0WEBPxx", "not_an_image"),
        (png_of(0, 10), "not_an_image"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "format_refused"),
        (b"\0\0\0\x20ftypavif....", "format_refused"),
        (b"%!PS-Adobe-3.0 EPSF", "format_refused"),
        (saved(two_colors(), "BMP"), "format_refused"),
        (saved(two_colors(), "TIFF"), "format_refused"),
        (saved(two_colors(), "ICO", sizes=[(16, 16)]), "format_refused"),
        (NOISE[: len(NOISE) // 2], "truncated"),
        (saved(Image.open(io.BytesIO(NOISE)), "JPEG")[:900], "truncated"),
        (png_of(16_000, 16_000), "too_large"),
        (png_of(65_535, 65_535), "too_large"),
        (png_of(9_000, 9_000), "too_large"),
        (png_of(20_000, 1_500), "too_large"),
        (png_of(4_000, 100), "bad_aspect"),
        (saved(Image.new("RGB", (15, 40)), "PNG"), "too_small"),
    ],
)
def test_what_is_no_usable_image_has_its_reason(data, outcome):
    with pytest.raises(UnusableError) as error:
        normalize(data, NormalizeOptions(min_side=16))
    assert error.value.outcome == outcome, error.value


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.booleans())
def test_a_broken_file_passes_or_has_a_reason(place, value, cut):
    data = GOOD[:place] if cut else GOOD[:place] + bytes([value]) + GOOD[place + 1 :]
    with contextlib.suppress(UnusableError):
        assert normalize(data, AS_IS).png


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_every_mode_of_the_accepted_formats(kind, mode):
    source = two_colors().quantize(4) if mode == "P" else two_colors().convert(mode)
    if kind in ("WEBP", "JPEG") and mode in ("P", "1"):
        source = source.convert("RGB" if mode == "P" else "L")
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    found = pixels(saved(source, kind, **lossless)).astype(int)
    expected = np.asarray(source.convert("RGB")).astype(int)
    inner = np.s_[2:-2, [5, 34]]  # away from edges, where JPEG rings
    assert np.abs(found - expected)[inner].max() <= (6 if kind == "JPEG" else 2)


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (8, 8), (*RED, 0))
    assert (pixels(saved(clear, "PNG")) == 255).all()
    half = pixels(saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"))
    assert abs(int(half[0, 0, 0]) - 127) <= 1
    key = saved(Image.new("RGB", (8, 8), RED), "PNG", transparency=RED)
    assert (pixels(key) == 255).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, *RED])
    assert (pixels(saved(palette, "PNG", transparency=1)) == 255).all()
    grey = saved(Image.new("LA", (8, 8), (0, 0)), "PNG")
    assert (pixels(grey) == 255).all()


def test_sixteen_bits_are_scaled():
    values = np.linspace(0, 65_535, 64, dtype=np.uint16).reshape(8, 8)
    found = pixels(saved(Image.fromarray(values), "PNG"))
    assert found.shape == (8, 8, 3)
    assert np.abs(found[..., 0] - values / 257).max() <= 0.51
    rgb = np.repeat(values[..., None], 3, axis=2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)
    found = pixels(png_of(8, 8, bits=16, data=rows))
    assert np.abs(found - rgb / 257).max() <= 1.0


def test_cmyk_becomes_rgb():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # pure magenta and yellow: red
    red, green, blue = pixels(saved(cmyk, "JPEG", quality=95))[8, 8]
    assert red > 245
    assert green < 10
    assert blue < 10


def test_a_colour_profile_is_applied_and_a_broken_one_ignored():
    image = Image.new("RGB", (16, 16), (100, 150, 200))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = pixels(saved(image, "PNG", icc_profile=srgb))
    assert np.abs(same.astype(int) - np.asarray(image)).max() <= 2
    assert (pixels(saved(image, "PNG", icc_profile=b"broken")) == np.asarray(image)).all()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # does not fit RGB
    assert (pixels(saved(image, "PNG", icc_profile=lab)) == np.asarray(image)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    upright = two_colors(40, 20)
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(saved(stored, "PNG", exif=exif))
    assert (found == np.asarray(upright)).all()


def test_the_first_frame_is_kept_and_frames_are_counted():
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, BLUE, (0, 0, 0))]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        done = normalize(data, AS_IS)
        assert done.frames == 3
        assert np.abs(pixels(data)[8, 8].astype(int) - RED).max() <= 3


@pytest.mark.parametrize("size", [(72, 72), (40, 20), (20, 41), (7, 9), (64, 64)])
def test_the_result_is_a_square_from_the_middle(size):
    done = normalize(saved(two_colors(*size), "PNG"), NormalizeOptions(image_size=16))
    image = Image.open(io.BytesIO(done.png))
    assert (image.size, image.mode, image.info) == ((16, 16), "RGB", {})
    assert (done.width, done.height) == (16, 16)
    assert done.pixel_sha256 == pixel_sha256(np.asarray(image))
    assert done.perceptual_hash == difference_hash(image)
    assert len(done.perceptual_hash) == 16


def test_equal_pixels_give_equal_bytes_and_another_shape_another_hash():
    options = NormalizeOptions(image_size=16)
    image = two_colors()
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    one = normalize(saved(image, "PNG"), options)
    other = normalize(saved(image, "PNG", compress_level=1, exif=exif), options)
    assert one == other
    assert b"secret" not in other.png
    flat = np.zeros((2, 8, 3), np.uint8)
    assert pixel_sha256(flat) != pixel_sha256(flat.reshape(8, 2, 3))


def test_the_difference_hash_follows_the_picture_not_its_size():
    ramp = np.tile(np.linspace(0, 255, 90).astype(np.uint8), (80, 1))
    rising = Image.fromarray(np.repeat(ramp[..., None], 3, axis=2))
    assert difference_hash(rising) == "ff" * 8
    assert difference_hash(rising.resize((45, 40))) == "ff" * 8
    assert difference_hash(rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == "00" * 8


def test_options_check_themselves():
    for wrong in ({"image_size": 0}, {"min_side": 0}, {"max_aspect": 0.5}):
        with pytest.raises(ValueError, match="must"):
            NormalizeOptions(**wrong)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([None, 16, 33]))
def test_a_frame_is_where_the_square_was_cut(width, height, side):
    """Cut out of the scaled picture by hand, it is the normalised one."""
    picture = two_colors(width, height)
    options = NormalizeOptions(image_size=side, max_aspect=100)
    done = normalize(saved(picture, "PNG"), options)
    scaled, square = framed(picture.size, side)
    cut = picture.resize(scaled, Image.Resampling.LANCZOS).crop(square)
    assert (done.file_width, done.file_height) == (width, height)
    assert done.pixel_sha256 == pixel_sha256(np.asarray(cut))


def test_the_files_size_is_that_of_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    done = normalize(saved(two_colors(), "PNG", exif=exif), AS_IS)
    assert (done.file_width, done.file_height) == (done.width, done.height) == (20, 40)
