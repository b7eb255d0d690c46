"""What a person gives: a picture from a file, or a document of the store; and boxes in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.ask.artifacts import Artifacts
from pipelines.decode.child import Decoder
from pipelines.decode.normalize import NormalizeOptions, framed
from pipelines.errors import UsageError
from pipelines.records import image_stack, kept_rows
from racm3.document import DocumentTokens
from racm3.sampling.holes import Box
from storage_schemas.fingerprint import sha256_bytes
from storage_schemas.manifest import Shard

__all__ = ["Given", "documents_by_id", "read_box", "read_given"]

_LARGEST_FILE = 128 * 2**20
_ID = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """A picture, and perhaps a caption, that a person gave."""

    name: str
    """As it was written."""
    pixels: NDArray[np.uint8]
    """RGB, as the image tokenizer sees it."""
    codes: tuple[int, ...]
    caption: str | None
    document_id: str | None
    """None: it is no document of the store."""
    sha256: str
    """Of the file; of a document, of its normalised image."""
    size: tuple[int, int]
    """Width and height of what boxes are measured in, pixels: the file as it is looked at."""
    image_size: int | None
    """Side of the square that was cut from it; None: none was."""

    def facts(self) -> dict[str, Any]:
        """What is recorded of it."""
        return {
            "name": self.name,
            "document_id": self.document_id,
            "sha256": self.sha256,
            "width": self.size[0],
            "height": self.size[1],
            "caption": self.caption,
        }

    def on_canvas(self, box: Box) -> Box:
        """A box of this picture in pixels of the image that the generator sees.

        Raises:
            UsageError: when it lies outside the picture, or outside the square that is seen of it.
        """
        width, height = self.size
        if box.right > width or box.bottom > height:
            raise UsageError(
                f"--box {_shown(box)}: {self.name} has {width} x {height} pixels; stay within them"
            )
        scaled, square = framed(self.size, self.image_size)
        side_y, side_x = self.pixels.shape[:2]
        left, right = _along(box.left, box.right, width, scaled[0], square[0::2], side_x)
        top, bottom = _along(box.top, box.bottom, height, scaled[1], square[1::2], side_y)
        if left >= right or top >= bottom:
            raise UsageError(
                f"--box {_shown(box)}: lies outside the square in the middle of {self.name}, which "
                "is all that the generator sees of it"
            )
        return Box(left, top, right, bottom)


def read_box(text: str) -> Box:
    """A box, as left,top,right,bottom.

    Raises:
        UsageError: when it is none.
    """
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
        return Box(left, top, right, bottom)
    except ValueError as error:
        raise UsageError(
            f"--box {text}: give left,top,right,bottom in whole pixels, from 0,0 at the upper "
            "left, with left < right and top < bottom"
        ) from error


def read_given(artifacts: Artifacts, text: str) -> Given:
    """A picture or a document: `FILE`, `FILE:CAPTION`, or at least 6 digits of a document id.

    Raises:
        UsageError: when it is neither, or the file is no picture that is read here.
    """
    path, colon, caption = text, "", ""
    if not Path(text).is_file():
        path, colon, caption = text.partition(":")
    if Path(path).is_file():
        return _file(artifacts, Path(path), caption if colon else None)
    if _ID.fullmatch(text):
        return _document(artifacts, text)
    raise UsageError(
        f"{text}: is no file that is there, and no document id (at least 6 of its digits)"
    )


# --- files ------------------------------------------------------------------------------------


def _file(artifacts: Artifacts, path: Path, caption: str | None) -> Given:
    """Reads a file as the pipeline does: in a limited child, brought to the recipe's form."""
    if path.stat().st_size > _LARGEST_FILE:
        raise UsageError(
            f"{path}: is larger than {_LARGEST_FILE // 2**20} MiB; give a smaller file"
        )
    data = path.read_bytes()
    options = _options(artifacts)
    with Decoder(options) as decoder:
        (done,) = decoder.decode([data])
    if done.image is None:
        raise UsageError(
            f"{path}: is no picture that can be used ({done.outcome.value}: {done.error}); "
            "give a PNG, JPEG, WebP or GIF file"
        )
    pixels = image_stack([done.image.png], artifacts.images.image_size)[0]
    return Given(
        name=str(path),
        pixels=pixels,
        codes=_codes(artifacts, pixels),
        caption=caption,
        document_id=None,
        sha256=sha256_bytes(data),
        size=(done.image.file_width, done.image.file_height),
        image_size=options.image_size,
    )


def _options(artifacts: Artifacts) -> NormalizeOptions:
    """The recipe's, for pictures of any size that is safe to read."""
    recipe = dict(artifacts.ref("normalized_images").config)
    return NormalizeOptions(**(recipe | {"min_side": 1}))


def _codes(artifacts: Artifacts, pixels: NDArray[np.uint8]) -> tuple[int, ...]:
    from racm3.training.image_tokenizer import images_to_tensor

    codes = artifacts.images.encode(images_to_tensor(pixels[None]))
    return tuple(int(code) for code in codes[0])


# --- documents --------------------------------------------------------------------------------


def _document(artifacts: Artifacts, prefix: str) -> Given:
    documents = artifacts.ref("documents")
    names = [
        name
        for shard in documents.tables("documents")
        for name in artifacts.reader.table(shard, ["document_id"]).column(0).to_pylist()
        if name is not None and name.startswith(prefix)
    ]
    found = sorted(set(names))
    if len(found) != 1:
        what = "no document has" if not found else f"{len(found)} documents have"
        raise UsageError(f"{prefix}: {what} an id that starts so")
    row = documents_by_id(artifacts, found, images=True)[found[0]]
    tokens = row["tokens"]
    pixels = image_stack([row["image"]], artifacts.images.image_size)[0]
    return Given(
        name=prefix,
        pixels=pixels,
        codes=tokens.image,
        caption=row["caption"],
        document_id=found[0],
        sha256=sha256_bytes(row["image"]),
        size=(row["width"], row["height"]),
        image_size=None,
    )


def documents_by_id(
    artifacts: Artifacts, names: Sequence[str], *, images: bool = False
) -> dict[str, dict[str, Any]]:
    """Rows of documents by id: caption, source, link where it is known, tokens (caption uncut).

    Raises:
        UsageError: when one of them is not there any more.
    """
    columns = ["document_id", "row_id", "source", "caption", "width", "height", "outcome"]
    shards = artifacts.ref("documents").tables("documents")
    rows = {
        row["document_id"]: row
        for row in _matching(artifacts, shards, columns + (["image"] if images else []), names)
    }
    links = _links(artifacts, {row["row_id"]: name for name, row in rows.items()})
    codes = {
        row["document_id"]: row["codes"]
        for row in _matching(
            artifacts,
            artifacts.image_tokens.tables("image_tokens"),
            ["document_id", "codes"],
            names,
        )
    }
    for name in names:
        if name not in rows or name not in codes:
            raise UsageError(
                f"document {name} is not among the documents of {artifacts.namespace} any more; "
                "build the memory again"
            )
        text = tuple(artifacts.text.encode(rows[name]["caption"]))
        rows[name]["tokens"] = DocumentTokens(text=text, image=tuple(codes[name]))
        rows[name]["url"] = links.get(name)
    return rows


def _matching(
    artifacts: Artifacts, shards: Sequence[Shard], columns: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows whose first column is among `names`, one shard in memory at a time."""
    values, found = pa.array(list(names), pa.string()), []
    for shard in shards:
        table = artifacts.reader.table(shard, list(columns))
        table = kept_rows(table) if "outcome" in columns else table
        found += table.filter(pc.is_in(table.column(0), value_set=values)).to_pylist()
    return found


def _links(artifacts: Artifacts, rows: dict[str, str]) -> dict[str, str | None]:
    """Links by document, of row ids by document."""
    shards = artifacts.ref("source_rows").tables("source_rows")
    found = _matching(artifacts, shards, ["row_id", "url"], list(rows))
    return {rows[one["row_id"]]: one["url"] for one in found}


# --- boxes ------------------------------------------------------------------------------------


def _along(
    low: int, high: int, pixels: int, scaled: int, seen: tuple[int, ...], side: int
) -> tuple[int, int]:
    """Pixels of the picture along one side, as pixels of what is seen; grown to whole ones."""
    start, stop = seen
    factor, shift = scaled / pixels, side / (stop - start)
    first = (max(low * factor, start) - start) * shift
    last = (min(high * factor, stop) - start) * shift
    return int(np.floor(first + 1e-6)), int(np.ceil(last - 1e-6))


def _shown(box: Box) -> str:
    return ",".join(str(edge) for edge in box.edges)
