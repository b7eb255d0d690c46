"""The run file of `docs/your-own-data.md`, word for word, on a thousand rows that a server of this
test answers for, a tenth of them badly. Every row is found again: as a document, or where it was
left behind and why.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.runtime.catalog import manifests
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import LocalStore
from storage_schemas.manifest import Manifest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.prefect,
    pytest.mark.timeout(600),
]

ROWS = 1000
PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-own-data.md"
PROMPTS = 3
SMALL = (
    *("encoder.training.fit.steps=4", "encoder.training.batch_size=32"),
    *("scorer.training.fit.steps=4", "scorer.training.batch_size=32"),
    *("image_tokenizer.fit.steps=12", "image_tokenizer.task.warmup_steps=4"),
    *("generators.ra.layers=2", "generators.ra.width=32", "generators.ra.fit.steps=4"),
    *("generators.ra.stream.batch_size=8", "generators.ra.validation_examples=8"),
    *("generators.vanilla.layers=2", "generators.vanilla.width=32"),
    *("generators.vanilla.fit.steps=4", "generators.vanilla.stream.batch_size=8"),
    *("generators.vanilla.validation_examples=8", "generators.ra.workers=0"),
    *(f"generate.prompts_per_group={PROMPTS}", "score.resamples=20"),
)
"""What makes the models of the page small."""

BAD_LINKS: dict[str, tuple[int, str, str]] = {
    "status/404": (20, "images", "http_error"),
    "status/410": (4, "images", "http_error"),
    "status/500": (4, "images", "http_error"),
    "status/503": (2, "images", "http_error"),
    "html": (14, "normalized_images", "not_an_image"),
    "cut": (10, "normalized_images", "truncated"),
    "short": (8, "images", "truncated"),
    "empty": (5, "images", "empty"),
    "hang": (4, "images", "timeout"),
    "drip": (2, "images", "timeout"),
    "inside/metadata": (5, "images", "redirect_refused"),
    "inside/network": (2, "images", "redirect_refused"),
    "inside/file": (1, "images", "redirect_refused"),
    "loop": (4, "images", "too_many_redirects"),
    "opted_out": (5, "images", "opted_out"),
    "reset": (4, "images", "network_error"),
    "http://10.1.2.3": (3, "images", "refused_address"),
    "ftp://files.invalid": (2, "images", "refused_scheme"),
    "huge": (1, "normalized_images", "too_large"),
}
"""Start of a bad link -> how many, which stage says so, and what it says."""

TABLES = (
    ("source_rows", "ingest_metadata"),
    ("images", "download_images"),
    ("normalized_images", "normalize_images"),
    ("documents", "curate_documents"),
)
"""Where a row may be left behind, in order, and the step that says so."""

# --- the rows ---------------------------------------------------------------------------------


@dataclass
class Metadata:
    """The Parquet file, and what must become of each of its rows."""

    address: str
    links: list[str | None] = field(default_factory=list)
    captions: list[bytes | None] = field(default_factory=list)
    sizes: list[int | None] = field(default_factory=list)
    fates: list[tuple[str, str]] = field(default_factory=list)
    """Table and outcome of each row."""
    copies: list[tuple[int, int]] = field(default_factory=list)
    """Rows of one picture: one of them is kept."""
    repeated: list[tuple[int, int]] = field(default_factory=list)
    """Rows of one link and caption: the first of the file is kept."""

    def add(
        self,
        path: str | None,
        where: str = "documents",
        outcome: str = "kept",
        *,
        caption: bytes | None = b"",
        size: int | None = None,
    ) -> int:
        index = len(self.links)
        link = path if path is None or "://" in path else f"http://{self.address}/{path}"
        named = f"number {index}: a {('red', 'blue', 'green')[index % 3]} ramp with a bar".encode()
        self.links.append(link)
        self.captions.append(named if caption == b"" else caption)
        self.sizes.append(size)
        self.fates.append((where, outcome))
        return index

    def write(self, file: Path) -> None:
        """As LAION: `URL`, `TEXT`, `WIDTH`, `HEIGHT`; one caption is no UTF-8."""
        order = np.random.default_rng(0).permutation(len(self.links)).tolist()
        place = {old: new for new, old in enumerate(order)}
        self.copies = [(place[a], place[b]) for a, b in self.copies]
        for name in ("links", "captions", "sizes", "fates"):
            setattr(self, name, [getattr(self, name)[old] for old in order])
        for pair in self.repeated:
            first, second = sorted(place[old] for old in pair)
            self.fates[first] = ("documents", "kept")
            self.fates[second] = ("source_rows", "duplicate_row")
        raw = pa.array(self.captions, pa.binary())
        text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
        sizes = pa.array(self.sizes, pa.int64())
        table = pa.table({"URL": self.links, "TEXT": text, "WIDTH": sizes, "HEIGHT": sizes})
        file.parent.mkdir(parents=True)
        pq.write_table(table, file)


def metadata(address: str) -> Metadata:
    rows = Metadata(address)
    for start, (count, where, outcome) in BAD_LINKS.items():
        for index in range(count):
            rows.add(f"{start}/{index}", where, outcome)
    assert len(rows.links) == ROWS // 10
    for index in range(4):
        rows.add(None, "source_rows", "url_missing")
        rows.add(f"picture/{2000 + index}", "source_rows", "caption_missing", caption=None)
        rows.add(f"picture/{2100 + index}", "source_rows", "caption_missing", caption=b"  ")
        rows.add(f"picture/{2200 + index}", "source_rows", "caption_not_utf8", caption=b"\xff\xfe")
    rows.add("picture/2300", "source_rows", "caption_too_long", caption=b"x" * 100_000)
    add_good_links(rows)
    while len(rows.links) < ROWS:
        index = len(rows.links)
        rows.add(f"picture/{index}", size=64 if index % 2 else None)
    return rows


def add_good_links(rows: Metadata) -> None:
    """Links that are answered well, and what is found out about some of them."""
    for index in range(25):
        rows.add(f"moved/{3000 + index}")
    for index in range(9):
        rows.add(f"picture/{2400 + index}", "source_rows", "too_small", size=63)
    for index in range(6):
        rows.add(f"tiny/{index}", "normalized_images", "too_small")
    for index in range(2):
        rows.add(f"long/{index}", "normalized_images", "bad_aspect")
    for other, start, count in (("copy", 4000, 20), ("again", 5000, 10)):
        for index in range(start, start + count):
            rows.copies.append((rows.add(f"picture/{index}"), rows.add(f"{other}/{index}")))
    for index in range(10):
        first = rows.add(f"picture/{6000 + index}")
        again = rows.add(f"picture/{6000 + index}", caption=rows.captions[first])
        rows.repeated.append((first, again))


# --- the run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own:
    """The finished run."""

    rows: Metadata
    store: LocalStore
    made: dict[str, Manifest]

    def table(self, label: str) -> list[dict[str, Any]]:
        manifest = self.made[label]
        shards = manifest.tables(manifest.kind)
        found: list[dict[str, Any]] = Reader(self.store).tables(shards).to_pylist()
        return found


@pytest.fixture(scope="module")
def own(lab: Any, ill_host: str, tmp_path_factory: pytest.TempPathFactory) -> Own:
    folder = tmp_path_factory.mktemp("own")
    shown = re.search(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    (folder / "mine.toml").write_text(shown[1], encoding="utf-8")
    rows = metadata(ill_host)
    rows.write(folder / "links" / "laion.parquet")
    arguments = [word for one in SMALL for word in ("--set", one)]
    lab.environment["RACM3_ALLOW_HOSTS"] = f'["{ill_host}"]'
    try:
        told = lab.json(
            *("run", str(folder / "mine.toml"), "--store", str(folder / "store"), *arguments),
            timeout=580,
        )
    finally:
        del lab.environment["RACM3_ALLOW_HOSTS"]
    store = LocalStore(folder / "store")
    by_id = {one.artifact_id: one for one in manifests(store)}
    made = {label: by_id[name] for label, name in told["artifacts"].items()}
    return Own(rows=rows, store=store, made=made)


def counted(own: Own, where: str) -> dict[str, int]:
    return dict(Counter(outcome for table, outcome in own.rows.fates if table == where))


def test_every_stage_accounts_for_its_rows(own: Own) -> None:
    for label, made in own.made.items():
        assert made.rows_in == made.rows_out + sum(made.dropped.values()), label
    rows, images = own.made["ingest_metadata"], own.made["download_images"]
    pixels, documents = own.made["normalize_images"], own.made["curate_documents"]
    assert rows.rows_in == ROWS
    assert images.rows_in == documents.rows_in == rows.rows_out
    assert pixels.rows_in == images.rows_out
    for label in ("embed_documents", "tokenize_images"):
        assert own.made[label].rows_in == own.made[label].rows_out == documents.rows_out
    roles = Counter(
        row["role"] for row in own.table("curate_documents") if row["outcome"] == "kept"
    )
    assert sum(roles.values()) == documents.rows_out
    assert own.made["build_memory[restricted]"].rows_out == roles["train"]
    for role, label, queries in (
        ("train", "train", 6),  # caption, four draws of it, image
        ("validation", "validation", 2),
        ("evaluation", "evaluation, restricted", 2),
    ):
        assert roles[role] > 0
        assert own.made[f"retrieve_contexts[{label}]"].rows_in == queries * roles[role]
        assert own.made[f"assemble_examples[{label}]"].rows_in == roles[role]
        assert own.made[f"assemble_examples[{label}]"].rows_out == roles[role]
    for label in ("generate[ra, restricted]", "generate[vanilla, none]"):
        assert own.made[label].rows_out == PROMPTS * 2  # a picture and a caption of each


def test_reasons_are_those_the_server_was_set_up_with(own: Own) -> None:
    assert own.made["ingest_metadata"].dropped == counted(own, "source_rows")
    assert own.made["download_images"].dropped == counted(own, "images")
    assert own.made["normalize_images"].dropped == counted(own, "normalized_images")
    pixels = counted(own, "normalized_images")
    shape = {name: pixels.pop(name) for name in ("too_large", "too_small", "bad_aspect")}
    assert own.made["curate_documents"].dropped == shape | {
        "download_failed": sum(counted(own, "images").values()),
        "not_decodable": sum(pixels.values()),
        "duplicate": len(own.rows.copies),
    }


def test_each_row_is_found_again(own: Own) -> None:
    sources = own.table("ingest_metadata")
    assert sorted(row["row_index"] for row in sources) == list(range(ROWS))
    index_of = {row["row_id"]: row["row_index"] for row in sources}
    fates: dict[int, tuple[str, str]] = {}
    for table, label in TABLES:
        for row in own.table(label):
            index = index_of[row["row_id"]]
            if fates.get(index, ("", "kept"))[1] == "kept":
                fates[index] = (table, row["outcome"])
    kept = {
        index_of[row["row_id"]]: row["duplicate_of"] or row["document_id"]
        for row in own.table("curate_documents")
        if row["outcome"] in ("kept", "duplicate")
    }
    for first, second in own.rows.copies:
        assert {fates[first][1], fates[second][1]} == {"kept", "duplicate"}
        assert kept[first] == kept[second]
        fates[first] = fates[second] = ("documents", "kept")
    assert [fates[index] for index in range(ROWS)] == own.rows.fates
    embedded = {row["document_id"] for row in own.table("embed_documents")}
    assert embedded == set(kept.values())


def test_a_link_is_on_one_side(own: Own) -> None:
    roles: dict[str, set[str]] = {}
    for row in own.table("ingest_metadata"):
        roles.setdefault(row["url"], set()).add(row["role"])
    assert all(len(found) == 1 for found in roles.values())
    count = Counter(role for found in roles.values() for role in found)
    for role in ("validation", "evaluation"):
        assert 0.015 * ROWS < count[role] < 0.1 * ROWS


def test_scores_are_about_what_was_held_out(own: Own) -> None:
    scores = own.table("score_generations")
    assert {"ra", "vanilla"} <= {row["model"] for row in scores}
    assert {row["set"] for row in scores if row["set"]} == {"photos"}
