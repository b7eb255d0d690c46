"""Column layouts of image-link tables: LAION's spellings, COCO-like ones, and the user's own.

A layout says which column of a file is which of ours. Ours are the columns of `source_rows`. What
a file has beyond them is left behind; what it lacks becomes null downstream, `url` and `caption`
apart: without these there is no document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import pyarrow as pa

OUR_COLUMNS = (
    "url",
    "caption",
    "width",
    "height",
    "similarity",
    "punsafe",
    "pwatermark",
    "license_claimed",
    "hash",
    "group",
    "concept",
    "category",
)
"""Columns a layout may fill, in the order of the result."""

_OURS = {"group": "group", "concept": "concept", "category": "category"}
_SIZED = {"url": "URL", "caption": "TEXT", "width": "WIDTH", "height": "HEIGHT"}

LAYOUTS: dict[str, dict[str, str]] = {
    "laion-2b": {
        **_SIZED,
        "similarity": "similarity",
        "punsafe": "punsafe",
        "pwatermark": "pwatermark",
        "hash": "hash",
        **_OURS,
    },
    "laion-400m": {
        **_SIZED,
        "similarity": "similarity",
        "license_claimed": "LICENSE",
        **_OURS,
    },
    "coyo": {
        "url": "url",
        "caption": "text",
        "width": "width",
        "height": "height",
        "similarity": "clip_similarity_vitl14",
        "pwatermark": "watermark_score",
        "hash": "image_phash",
        **_OURS,
    },
    "re-laion": {
        "url": "url",
        "caption": "caption",
        "width": "width",
        "height": "height",
        "similarity": "similarity",
        "punsafe": "punsafe",
        "pwatermark": "pwatermark",
        "hash": "hash",
        "license_claimed": "license",
        **_OURS,
    },
    "coco": {"url": "coco_url", "caption": "caption", "width": "width", "height": "height"},
    "image-url": {"url": "image_url", "caption": "caption"},
    "original-width": {
        "url": "url",
        "caption": "caption",
        "width": "original_width",
        "height": "original_height",
        **_OURS,
    },
}
"""Our column -> theirs, by layout. Upper and lower case do not matter in detection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which column of a file is which of ours."""

    name: str
    """A key of `LAYOUTS`, or `mapped` when the user said which is which."""
    columns: tuple[tuple[str, str], ...]
    """(ours, theirs as the file spells it), in the order of `OUR_COLUMNS`."""

    def apply(self, table: pa.Table) -> pa.Table:
        """The mapped columns under our names, types and values as they are."""
        arrays = [table.column(theirs) for _, theirs in self.columns]
        return pa.table(arrays, names=[ours for ours, _ in self.columns])


def resolve_layout(
    columns: Sequence[str], *, mapping: Mapping[str, str] | None = None, file: str = "the file"
) -> Layout:
    """The layout of a file with these columns.

    Args:
        columns: column names as the file spells them.
        mapping: our column -> theirs, where the user names them; overrides detection column by
            column and is matched exactly.
        file: name for error messages.

    Returns:
        The layout with the most columns found, the first one listed when several tie, with the
        mapping put over it.

    Raises:
        ValueError: one sentence; when the mapping names an unknown column, or no column can be
            found for `url` or `caption`.
    """
    mapping = mapping or {}
    _check_mapping(mapping, columns, file)
    name, found = max(
        ((name, _match(layout, columns)) for name, layout in LAYOUTS.items()),
        key=lambda pair: _rank({**pair[1], **mapping}),
    )
    found = {ours: theirs for ours, theirs in found.items() if theirs not in mapping.values()}
    found.update(mapping)
    for needed in ("url", "caption"):
        if needed not in found:
            listed = ", ".join(f"'{column}'" for column in columns) or "none"
            raise ValueError(
                f"{file} has no column that is known to hold the {needed} (columns found: "
                f"{listed}); name it in the run file, for instance "
                f'ingest.columns.NAME = {{ url = "link", caption = "title" }}.'
            )
    pairs = tuple((ours, found[ours]) for ours in OUR_COLUMNS if ours in found)
    return Layout(name="mapped" if mapping else name, columns=pairs)


def _rank(found: Mapping[str, str]) -> tuple[int, int]:
    """A layout that finds link and caption wins over one that finds more of the rest."""
    return ("url" in found) + ("caption" in found), len(found)


def _match(layout: Mapping[str, str], columns: Sequence[str]) -> dict[str, str]:
    """The file's spelling of each column of the layout; the layout's own spelling wins."""
    by_lower: dict[str, str] = {}
    for column in columns:
        by_lower.setdefault(column.lower(), column)
    exact = set(columns)
    return {
        ours: theirs if theirs in exact else by_lower[theirs.lower()]
        for ours, theirs in layout.items()
        if theirs.lower() in by_lower
    }


def _check_mapping(mapping: Mapping[str, str], columns: Sequence[str], file: str) -> None:
    for ours, theirs in mapping.items():
        if ours not in OUR_COLUMNS:
            near = get_close_matches(ours, OUR_COLUMNS, n=1)
            hint = f"did you mean '{near[0]}'" if near else f"known are {', '.join(OUR_COLUMNS)}"
            raise ValueError(f"The mapping for {file} fills an unknown column '{ours}': {hint}?")
        if theirs not in columns:
            listed = ", ".join(f"'{column}'" for column in columns) or "none"
            raise ValueError(
                f"The mapping for {file} takes '{ours}' from the column '{theirs}', "
                f"which the file does not have (columns found: {listed})."
            )
