"""The commands that ask a generator, on the store of the small run; in this process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.cli import ask
from pipelines.ask import Session, Settings
from pipelines.errors import UsageError
from pipelines.records import image_array
from pipelines.runtime.catalog import read_ref
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import LocalStore
from storage_schemas.manifest import Manifest

# the first of them makes the run of this folder
pytestmark = [pytest.mark.ray, pytest.mark.prefect, pytest.mark.timeout(300)]

SIDE, GRID = 64, 8


@pytest.fixture
def command(
    lab: Any, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., Any]:
    """Runs a command; returns the record that it printed, with the file it wrote."""

    def run(name: str, *arguments: Any, out: str = "out.png", **options: Any) -> Any:
        monkeypatch.setenv("RACM3_STORE", "")
        output = tmp_path / out
        options = {"store": str(lab.store)} | options
        getattr(ask, name)(*arguments, output=output, as_json=True, **options)
        printed = json.loads(capsys.readouterr().out)
        assert json.loads(output.with_suffix(".json").read_text()) == printed
        assert printed["output"]["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
        return printed

    return run


def named(store: LocalStore, name: str) -> Manifest:
    found = read_ref(store, "smoke", name)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def session(lab: Any, finished: Any) -> Session:
    return Session(LocalStore(lab.store), "smoke", Settings())


@pytest.fixture(scope="module")
def documents(lab: Any, finished: Any) -> list[dict[str, Any]]:
    """Documents that the memory may hold, in two sources."""
    store = LocalStore(lab.store)
    columns = ["document_id", "caption", "source", "role", "outcome", "image"]
    rows = Reader(store).tables(named(store, "documents").tables(), columns).to_pylist()
    kept = [row for row in rows if row["outcome"] == "kept" and row["role"] == "train"]
    return sorted(kept, key=lambda row: str(row["document_id"]))


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., str]:
    """Writes a picture: red on the left, blue on the right, a dark corner at the upper left."""

    def write(name: str = "mine.png", size: tuple[int, int] = (64, 64), **saving: Any) -> str:
        image = drawing(size)
        image.save(tmp_path / name, **saving)
        return str(tmp_path / name)

    return write


def drawing(size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, (200, 30, 40))
    image.paste((20, 30, 220), (size[0] // 2, 0, *size))
    image.paste((10, 10, 10), (0, 0, size[0] // 4, size[1] // 4))
    return image


# --- generate ---------------------------------------------------------------------------------


def test_a_drawing_tells_its_whole_origin(
    command: Callable[..., Any], documents: list[dict[str, Any]], lab: Any
) -> None:
    row = documents[0]
    record = command("generate", row["caption"], candidates=3, seed=5)
    assert (record["task"], record["prompt"], record["seed"]) == ("generate", row["caption"], 5)
    store = LocalStore(lab.store)
    assert record["generator"] == named(store, "generator.ra").artifact_id
    assert record["artifacts"] == {
        "generator": record["generator"],
        "image_tokenizer": named(store, "image_tokenizer").artifact_id,
        "text_tokenizer": named(store, "text_tokenizer").artifact_id,
        "encoder": named(store, "encoder").artifact_id,
        "memory": named(store, "memory.extended").artifact_id,
    }
    assert [one["chosen"] for one in record["candidates"]].count(True) == 1
    best = max(record["candidates"], key=lambda one: float(one["score"]))
    assert best["chosen"]
    assert best["log_likelihood"] == record["log_likelihood"]
    assert record["candidates"][0]["seed"] == 5
    assert record["sampler"]["rank"] == "clip"
    assert len(record["output_tokens"]) == GRID * GRID
    known = {one["document_id"] for one in documents}
    for context in record["contexts"]:
        assert context["url"].startswith("http://emoji.invalid/")
        assert context["score"] > 0
        assert context["caption"]
    assert known & {one["document_id"] for one in record["contexts"]}
    assert image_array(Path(record["file"]).read_bytes()).shape == (SIDE, SIDE, 3)
    assert record["created_at"]
    assert "torch" in record["versions"]


def test_equal_seeds_draw_equal_images_and_more_candidates_go_on(
    command: Callable[..., Any],
) -> None:
    one = command("generate", "a red apple", seed=1)
    again = command("generate", "a red apple", seed=1, out="again.png")
    other = command("generate", "a red apple", seed=2, out="other.png")
    more = command("generate", "a red apple", seed=1, candidates=2, rank="likelihood")
    assert one["output"]["sha256"] == again["output"]["sha256"] != other["output"]["sha256"]
    assert more["candidates"][0]["log_likelihood"] == pytest.approx(one["log_likelihood"], rel=1e-5)


@pytest.mark.parametrize(
    ("prompt", "cut"), [("x", False), ("a red snail " * 834, True), ("\udcff\n\0", False)]
)
def test_prompts_of_any_length_draw(command: Callable[..., Any], prompt: str, cut: bool) -> None:
    record = command("generate", prompt)
    assert (record["cut_text_tokens"] > 0) == cut
    assert any("were left out" in note for note in record["notes"]) == cut


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_refused(command: Callable[..., Any], prompt: str) -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        command("generate", prompt)


def test_more_contexts_than_there_are_is_said(
    lab: Any, finished: Any, command: Callable[..., Any], documents: list[dict[str, Any]]
) -> None:
    record = command("generate", documents[0]["caption"], k=10**9)
    assert 1 <= len(record["contexts"]) <= 2
    assert any("reads 2 at most" in note for note in record["notes"])
    none = command("generate", "a red apple", k=0)
    assert (none["contexts"], none["notes"]) == ([], [])
    assert (record["memory"], none["memory"]) == ("extended", None)


def test_a_generator_without_contexts_asks_no_memory(command: Callable[..., Any]) -> None:
    asked = {"model": "vanilla", "memory": "extended", "candidates": 2}
    record = command("generate", "a red apple", **asked)
    assert any("asks no memory" in note for note in record["notes"])
    assert (record["contexts"], record["memory"], record["artifacts"]["memory"]) == ([], None, None)
    with pytest.raises(UsageError, match=r"has no generator\.nope"):
        command("generate", "a red apple", model="nope")


# --- pictures ---------------------------------------------------------------------------------

MODES = {"1": "png", "L": "png", "LA": "png", "P": "png", "RGBA": "webp", "CMYK": "jpg"}


@pytest.mark.parametrize("mode", [*MODES, "I;16"])
def test_pictures_of_any_mode_are_read(session: Session, tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"mode.{MODES.get(mode, 'png')}"
    if mode == "I;16":
        grey = np.asarray(drawing((50, 40)).convert("L")).astype(np.uint16) * 257
        Image.fromarray(grey).save(path)
    else:
        drawing((50, 40)).convert(mode).save(path)
    given = session.read(str(path))
    assert given.pixels.shape == (SIDE, SIDE, 3)
    assert len(given.codes) == GRID * GRID
    assert given.size == (50, 40)


def test_a_turned_picture_is_seen_upright(session: Session, tmp_path: Path) -> None:
    upright = drawing((96, 64))
    upright.save(tmp_path / "upright.png")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by whoever looks at it
    turned.save(tmp_path / "turned.png", exif=exif)
    first, second = (session.read(str(tmp_path / f"{n}.png")) for n in ("upright", "turned"))
    assert first.size == second.size == (96, 64)
    assert np.array_equal(first.pixels, second.pixels)
    assert first.codes == second.codes
    assert first.sha256 != second.sha256


def test_a_documents_codes_are_those_of_the_store(
    session: Session, documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Read as a document, and read as a file of the same pixels."""
    row = documents[3]
    (tmp_path / "same.png").write_bytes(row["image"])
    stored = session.read(row["document_id"][:12])
    assert (stored.document_id, stored.caption) == (row["document_id"], row["caption"])
    assert session.read(f"{tmp_path / 'same.png'}:of a bee").codes == stored.codes


@pytest.mark.parametrize(
    ("name", "said"),
    [("text.png", "not_an_image"), ("half.png", "truncated"), ("map.bmp", "BMP is not decoded")],
)
def test_what_is_no_picture_is_one_sentence(
    session: Session, tmp_path: Path, name: str, said: str
) -> None:
    sink = BytesIO()
    drawing((64, 64)).save(sink, "BMP" if name.endswith("bmp") else "PNG")
    data = b"hello" if name == "text.png" else sink.getvalue()
    (tmp_path / name).write_bytes(data[: len(data) // 2] if name == "half.png" else data)
    with pytest.raises(UsageError, match=said):
        session.read(str(tmp_path / name))


@pytest.mark.parametrize("text", ["nowhere.png", "abc", "000000000000", "nowhere.png:a cat"])
def test_what_is_neither_file_nor_document_is_refused(session: Session, text: str) -> None:
    with pytest.raises(UsageError, match=text.partition(":")[0]):
        session.read(text)


# --- caption, infill, edit, demonstrate ---------------------------------------------------------


def test_a_caption_is_the_likeliest_of_several(
    command: Callable[..., Any], picture: Callable[..., str]
) -> None:
    mine = picture(size=(90, 70))
    record = command("caption", mine, candidates=3, out="caption.txt")
    assert Path(record["file"]).read_text() == record["text"] + "\n"
    assert record["sampler"]["rank"] == "likelihood"
    assert record["prompt"] is None
    assert record["given"][0]["sha256"] == hashlib.sha256(Path(mine).read_bytes()).hexdigest()
    assert (record["given"][0]["width"], record["given"][0]["height"]) == (90, 70)


def test_a_caption_may_be_ranked_by_the_picture_itself(
    command: Callable[..., Any], picture: Callable[..., str], session: Session
) -> None:
    """Not by what its codes paint."""
    mine = picture()
    record = command("caption", mine, candidates=4, rank="clip", out="caption.txt")
    encoder = session.artifacts.encoder
    seen = encoder.encode_images([session.read(mine).pixels])[0]
    (kept,) = [one["score"] for one in record["candidates"] if one["chosen"]]
    assert kept == max(one["score"] for one in record["candidates"])
    assert kept == pytest.approx(float(encoder.encode_text([record["text"]])[0] @ seen), abs=1e-5)


def test_an_infill_keeps_what_is_around_the_box(
    command: Callable[..., Any], picture: Callable[..., str], session: Session
) -> None:
    """A picture of 192 x 128: its middle square of 128 is seen, scaled to 64."""
    path = picture(size=(192, 128))
    record = command("infill", path, "a red square", "64,32,96,96")
    assert record["box"] == [64, 32, 96, 96]
    assert record["box_seen"] == [16, 16, 32, 48]
    hole = {row * GRID + column for row in range(2, 6) for column in (2, 3)}
    codes = session.read(path).codes
    kept = [i for i in range(GRID * GRID) if i not in hole]
    assert [record["output_tokens"][i] for i in kept] == [codes[i] for i in kept]
    assert record["output_tokens"] != list(codes)
    bare = command("infill", path, None, "64,32,96,96")
    assert bare["prompt"] is None


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ("0,0,32,128", "outside the square"),
        ("0,0,193,9", "192 x 128 pixels"),
        ("5,5,5,9", "left < right"),
        ("a,b", "left,top,right,bottom"),
    ],
)
def test_a_box_that_cannot_be_filled_is_refused(
    command: Callable[..., Any], picture: Callable[..., str], box: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        command("infill", picture(size=(192, 128)), "a red square", box)


def test_words_are_written_at_the_hole(
    command: Callable[..., Any], picture: Callable[..., str]
) -> None:
    record = command("infill", picture(), "red ___ and blue", out="words.txt")
    assert record["text"].startswith("red")
    assert record["text"].endswith(" and blue")
    assert len(record["text"]) > len("red and blue")
    with pytest.raises(UsageError, match="one ___"):
        command("infill", picture(), "___ and ___", out="words.txt")
    with pytest.raises(UsageError, match="a shorter one"):
        command("infill", picture(), "red apples " * 40 + "___", out="words.txt")
    with pytest.raises(UsageError, match="either --box"):
        command("infill", picture(), "red and blue")


def test_a_document_of_the_memory_is_not_its_own_context(
    command: Callable[..., Any], documents: list[dict[str, Any]]
) -> None:
    row = documents[0]
    prompted = command("generate", row["caption"])
    assert row["document_id"] in [c["document_id"] for c in prompted["contexts"]]
    record = command("infill", row["document_id"], None, "0,0,32,32")
    assert record["prompt"] == row["caption"]
    assert row["document_id"] not in [c["document_id"] for c in record["contexts"]]


def test_an_edit_reads_what_was_supplied(
    command: Callable[..., Any], picture: Callable[..., str], documents: list[dict[str, Any]]
) -> None:
    mine, other = picture(), documents[1]
    record = command("edit", mine, other["document_id"], None, "16,16,48,48")
    assert (record["sampler"]["guidance"], record["sampler"]["null_lacks"]) == (4.0, "contexts")
    assert [c["document_id"] for c in record["contexts"]] == [other["document_id"]]
    assert record["prompt"] == other["caption"]
    assert record["contexts"][0]["score"] is None
    whole = command("edit", f"{mine}:a red square", other["document_id"], "a blue square", None)
    assert [c["caption"] for c in whole["contexts"]] == ["a red square", other["caption"]]
    assert whole["contexts"][0]["sha256"] == hashlib.sha256(Path(mine).read_bytes()).hexdigest()
    assert whole["prompt"] == "a blue square"
    assert whole["box"] is None
    with pytest.raises(UsageError, match="give --caption"):
        command("edit", mine, mine, None, None)


def test_demonstrations_are_read_in_the_order_given(
    command: Callable[..., Any], picture: Callable[..., str], documents: list[dict[str, Any]]
) -> None:
    mine, other = f"{picture()}:a red square", documents[1]["document_id"]
    orders = [[mine, other], [other, mine]]
    records = [command("demonstrate", "a red circle", order) for order in orders]
    ids = [[c["document_id"] for c in record["contexts"]] for record in records]
    assert ids == [[None, other], [other, None]]
    assert (records[0]["memory"], records[0]["artifacts"]["memory"]) == (None, None)
    assert [one["name"] for one in records[0]["given"]] == [mine.rpartition(":")[0], other]
    for chosen, model, said in (
        ([mine, other, mine], "ra", "between 1 and 2"),
        ([], "ra", "between 1 and 2"),
        ([mine], "vanilla", "reads none"),
    ):
        with pytest.raises(UsageError, match=said):
            command("demonstrate", "a red circle", chosen, model=model)


def test_where_nothing_can_be_written_nothing_is_drawn(command: Callable[..., Any]) -> None:
    for out in ("none/x.png", "x.json", "."):
        with pytest.raises(UsageError):
            command("generate", "a red apple", out=out)


# --- what does not fit together -------------------------------------------------------------------


def test_a_memory_tokenised_otherwise_is_refused_by_both_ids(
    mixed: LocalStore, remade: Callable[..., str], command: Callable[..., Any]
) -> None:
    made = remade("image_tokens", "image_tokenizer", model := "f" * 64)
    ours = named(mixed, "generator.ra").artifact_id
    with pytest.raises(UsageError, match=f"generator {ours} .* image_tokens {made} with {model}"):
        command("generate", "a red apple", store=str(mixed.root))
    command("generate", "a red apple", model="vanilla", store=str(mixed.root))


def test_a_memory_embedded_otherwise_is_refused_by_both_ids(
    mixed: LocalStore, remade: Callable[..., str], command: Callable[..., Any]
) -> None:
    embeddings = remade("embeddings", "encoder", model := "e" * 64)
    memory = remade("memory.extended", "embeddings", embeddings)
    ours = named(mixed, "generator.ra").artifact_id
    with pytest.raises(UsageError, match=f"generator {ours} .* memory {memory} with {model}"):
        command("generate", "a red apple", store=str(mixed.root))
    command("generate", "a red apple", memory="restricted", store=str(mixed.root))
