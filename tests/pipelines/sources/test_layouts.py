from __future__ import annotations

import pyarrow as pa
import pytest

from pipelines.sources.layouts import LAYOUTS, OUR_COLUMNS, resolve_layout

LAION_2B = ["URL", "TEXT", "WIDTH", "HEIGHT", "similarity", "hash", "punsafe", "pwatermark"]
LAION_400M = ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"]


@pytest.mark.parametrize(
    ("columns", "name", "some"),
    [
        (LAION_2B, "laion-2b", {"url": "URL", "caption": "TEXT", "punsafe": "punsafe"}),
        (LAION_400M, "laion-400m", {"license_claimed": "LICENSE", "similarity": "similarity"}),
        ([*LAION_2B, "group", "concept"], "laion-2b", {"group": "group", "concept": "concept"}),
        ([*LAION_2B, "Category"], "laion-2b", {"category": "Category"}),
        (["url", "caption", "similarity", "punsafe"], "re-laion", {"punsafe": "punsafe"}),
        (["url", "caption"], "re-laion", {"url": "url", "caption": "caption"}),
        (["Url", "Caption", "Key"], "re-laion", {"url": "Url", "caption": "Caption"}),
        (["coco_url", "caption", "height", "width"], "coco", {"url": "coco_url"}),
        (["image_url", "caption"], "image-url", {"url": "image_url"}),
    ],
)
def test_layouts_are_recognised(columns: list[str], name: str, some: dict[str, str]) -> None:
    layout = resolve_layout(columns)
    assert layout.name == name
    assert some.items() <= dict(layout.columns).items()
    assert {theirs for _, theirs in layout.columns} <= set(columns)


def test_every_layout_recognises_itself_in_any_case() -> None:
    for name, layout in LAYOUTS.items():
        assert set(layout) <= set(OUR_COLUMNS)
        for spell in (str, str.upper, str.lower):
            columns = [spell(theirs) for theirs in layout.values()]
            found = resolve_layout(columns)
            assert dict(found.columns) == dict(zip(layout, columns, strict=True)), name


def test_the_exact_spelling_wins() -> None:
    assert dict(resolve_layout(["url", "URL", "TEXT"]).columns)["url"] == "URL"


def test_a_mapping_overrides_detection_column_by_column() -> None:
    columns = ["link", "TEXT", "WIDTH", "title"]
    layout = resolve_layout(columns, mapping={"url": "link"})
    assert layout.name == "mapped"
    assert dict(layout.columns) == {"url": "link", "caption": "TEXT", "width": "WIDTH"}
    layout = resolve_layout(columns, mapping={"url": "link", "caption": "title"})
    assert dict(layout.columns) == {"url": "link", "caption": "title", "width": "WIDTH"}


def test_apply_takes_the_columns_under_our_names() -> None:
    table = pa.table({"x": [1], "TEXT": ["a"], "URL": ["http://a.b/c.png"]})
    renamed = resolve_layout(table.column_names).apply(table)
    assert renamed.to_pydict() == {"url": ["http://a.b/c.png"], "caption": ["a"]}


def test_no_url_column_lists_what_is_there_and_the_remedy() -> None:
    with pytest.raises(ValueError, match="no column") as error:
        resolve_layout(["link", "TEXT"], file="mine.parquet")
    text = str(error.value)
    assert text.startswith("mine.parquet has no column that is known to hold the url")
    assert "'link', 'TEXT'" in text
    assert 'ingest.columns.NAME = { url = "link"' in text
    assert "\n" not in text


def test_no_caption_column_is_refused_too() -> None:
    with pytest.raises(ValueError, match="hold the caption"):
        resolve_layout(["URL", "similarity"])


def test_a_wrong_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'caption'"):
        resolve_layout(["URL", "TEXT"], mapping={"captoin": "TEXT"})
    with pytest.raises(ValueError, match=r"'lnik', which the file does not have.*'URL', 'TEXT'"):
        resolve_layout(["URL", "TEXT"], mapping={"url": "lnik"})
