"""`racm3 classify`, on the store of the small run; in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flows.cli.classify import Way, classify
from pipelines.errors import UsageError
from pipelines.models import load_generator, load_image_tokenizer, load_text_tokenizer
from pipelines.records import image_stack
from pipelines.runtime.catalog import read_ref
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import LocalStore
from racm3.sampling.channel import image_log_likelihoods, shares
from racm3.sampling.classify import ClassifyConfig, Question
from racm3.sampling.classify import classify as answer_of
from racm3.training.image_tokenizer import images_to_tensor
from storage_schemas.fingerprint import sha256_bytes
from storage_schemas.manifest import Manifest

pytestmark = [pytest.mark.ray, pytest.mark.prefect, pytest.mark.timeout(300)]


def named(store: LocalStore, name: str) -> Manifest:
    found = read_ref(store, "smoke", name)
    assert found is not None
    return found


@pytest.fixture
def command(
    lab: Any, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., Any]:
    """Runs the command; returns the record that it printed, which is the file that it wrote."""

    def run(image: str, *classes: str, out: str = "out.json", **options: Any) -> Any:
        monkeypatch.setenv("RACM3_STORE", "")
        output = tmp_path / out
        options = {"store": str(lab.store)} | options
        classify(image, list(classes), output=output, as_json=True, **options)
        printed = json.loads(capsys.readouterr().out)
        assert json.loads(output.read_text()) == printed
        assert printed["file"] == printed["output"]["file"] == str(output)
        return printed

    return run


@pytest.fixture(scope="module")
def documents(lab: Any, finished: Any) -> list[dict[str, Any]]:
    store = LocalStore(lab.store)
    columns = ["document_id", "outcome", "image"]
    rows = Reader(store).tables(named(store, "documents").tables(), columns).to_pylist()
    kept = [row for row in rows if row["outcome"] == "kept"]
    return sorted(kept, key=lambda row: str(row["document_id"]))[:4]


@pytest.fixture
def files(documents: list[dict[str, Any]], tmp_path: Path) -> list[str]:
    """The pixels of the documents, as somebody's files of another format and mode."""
    for n, row in enumerate(documents):
        (tmp_path / "one.png").write_bytes(row["image"])
        image = Image.open(tmp_path / "one.png").convert("RGBA")
        image.save(tmp_path / f"{n}.webp", lossless=True)
    return [str(tmp_path / f"{n}.webp") for n in range(len(documents))]


@pytest.mark.parametrize("how", [{}, {"all_orders": False, "all_labels": True, "calibrate": True}])
def test_the_answer_is_that_of_the_generator_with_its_own_tokenizers(
    command: Callable[..., Any],
    documents: list[dict[str, Any]],
    files: list[str],
    lab: Any,
    how: dict[str, bool],
) -> None:
    a, _, c, d = [row["document_id"] for row in documents]
    classes = (f"dax={a[:8]},{files[1]}", f"wug={c},{d[:12]}")
    record = command(files[0], *classes, method=Way.direct, **how)
    store = LocalStore(lab.store)
    made = {kind: named(store, kind) for kind in ("text_tokenizer", "image_tokenizer")}
    made["generator"] = named(store, "generator.ra")
    paths = {
        kind: {s.name: store.local(s.path) for s in one.shards if not s.is_table}
        for kind, one in made.items()
    }
    images = load_image_tokenizer(paths["image_tokenizer"])
    text = load_text_tokenizer(paths["text_tokenizer"])
    loaded = load_generator(paths["generator"])
    stack = images_to_tensor(image_stack([row["image"] for row in documents], images.image_size))
    with torch.no_grad():
        codes = [tuple(one) for one in images.encode(stack).tolist()]
    shown = ((codes[0], codes[2]), (codes[1], codes[3]))
    labels = [tuple(text.encode(label)) for label in ("dax", "wug")]
    (expected,) = answer_of(
        loaded.model,
        loaded.layout,
        [Question(image=codes[0], demonstrations=shown)],
        labels,
        ClassifyConfig(**how),
    )
    mean = expected.mean(axis=0)
    assert [list(one.values()) for one in record["sets"]] == [
        pytest.approx(one, rel=1e-4) for one in expected.tolist()
    ]
    assert list(record["probabilities"].values()) == pytest.approx(mean, rel=1e-4)
    assert sum(record["probabilities"].values()) == pytest.approx(1)
    assert record["label"] == max(record["probabilities"], key=record["probabilities"].get)

    asked, labelled = Question(image=codes[0], demonstrations=shown), how.get("all_labels", False)
    (likely,) = image_log_likelihoods(
        loaded.model, loaded.layout, [asked], labels, all_labels=labelled
    )
    channel = command(files[0], *classes, all_labels=labelled)
    assert channel["settings"] == {"method": "channel", "all_labels": labelled}
    each = shares(likely)
    assert list(channel["probabilities"].values()) == pytest.approx(each.mean(axis=0), rel=1e-3)
    for one, alone in zip(channel["sets"], each, strict=True):
        assert list(one.values()) == pytest.approx(alone, rel=1e-3)

    assert (record["task"], record["recipe"], record["model"]) == ("classify", "smoke", "ra")
    assert record["generator"] == made["generator"].artifact_id
    assert record["artifacts"] == {kind: one.artifact_id for kind, one in made.items()} | {
        "encoder": None,
        "memory": None,
    }
    (given,) = record["given"]
    assert (given["name"], given["document_id"]) == (files[0], None)
    assert given["sha256"] == sha256_bytes(Path(files[0]).read_bytes())
    ids = {
        label: [one["document_id"] for one in these]
        for label, these in record["demonstrations"].items()
    }
    assert ids == {"dax": [a, None], "wug": [c, d]}
    defaults = {"method": "direct", "all_orders": True, "all_labels": False, "calibrate": False}
    assert record["settings"].items() >= (defaults | how).items()
    assert record["created_at"]
    assert "torch" in record["versions"]


def test_what_cannot_be_classified_is_said_in_a_sentence(
    command: Callable[..., Any], files: list[str]
) -> None:
    classes = (f"dax={files[1]}", f"wug={files[2]}")
    with pytest.raises(UsageError, match=r"missing\.png: is no file .* no document id"):
        command("missing.png", *classes)
    with pytest.raises(UsageError, match=r"has no generator\.other"):
        command(files[0], *classes, model="other")
    with pytest.raises(UsageError, match=r"classify: A label has .* it must have 1 to"):
        command(files[0], f"{'many words ' * 50}={files[1]}", f"wug={files[2]}")
    with pytest.raises(UsageError, match="no file in a folder that is there"):
        command(files[0], *classes, out="none/out.json")
    for idle in ({"calibrate": True}, {"all_orders": False}):
        with pytest.raises(UsageError, match="only with --method direct"):
            command(files[0], *classes, **idle)


def test_only_what_takes_part_must_fit(
    command: Callable[..., Any],
    documents: list[dict[str, Any]],
    files: list[str],
    mixed: LocalStore,
    remade: Callable[..., str],
) -> None:
    """A memory and codes of other models matter where they are read."""
    classes = (f"dax={files[1]}", f"wug={files[2]}")
    before = command(files[0], *classes)
    remade("memory.extended", "embeddings", remade("embeddings", "encoder", "e" * 64))
    codes = remade("image_tokens", "image_tokenizer", "f" * 64)
    after = command(files[0], *classes, store=str(mixed.root))
    assert after["probabilities"] == before["probabilities"]
    for model in ("ra", "vanilla"):
        with pytest.raises(UsageError, match=f"image_tokens {codes} with {'f' * 64}"):
            command(documents[0]["document_id"], *classes, model=model, store=str(mixed.root))
