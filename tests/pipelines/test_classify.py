"""What `racm3 classify` calls: images by file and by id, artifacts that fit together."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.classify import classify_image, load_pictures, read_classes
from pipelines.errors import UsageError
from pipelines.models import load_generator, save_generator
from pipelines.records import image_array, image_png
from pipelines.runtime.catalog import move_ref, publish
from pipelines.runtime.store import LocalStore
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.image_tokenizer.vqgan import VQGAN, VQGANConfig
from racm3.sampling.classify import ClassifyConfig, Question, classify
from racm3.sequence.layout import Layout
from racm3.text_tokenizer import TextTokenizer
from racm3.vocabulary import Vocabulary
from storage_schemas.fingerprint import canonical_json, digest_of, sha256_bytes
from storage_schemas.manifest import InputRef, Manifest, Shard
from storage_schemas.parquet import encode_shard, row_digest
from storage_schemas.tables import TABLES

SIZE, NAMESPACE = 16, "drawn"
COLOURS = ((220, 20, 30), (20, 200, 40), (30, 40, 220), (90, 90, 90))
IDS = tuple(digest_of(["document", n]) for n in range(4))


def drawing(colour):
    return np.full((SIZE, SIZE, 3), colour, dtype=np.uint8)


def pixels_of(colours):
    stack = np.stack([drawing(colour) for colour in colours])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255


class Published:
    """A store with what the command reads, published as a run would."""

    def __init__(self, folder):
        self.folder, self.store = folder, LocalStore(folder / "store")
        self.artifact("normalized_images", config={"image_size": SIZE, "min_side": 4})
        rows = [
            dict.fromkeys(TABLES["documents"].arrow.names)
            | {"row_id": f"r{n}", "document_id": IDS[n], "source": "s", "role": "train"}
            | {"image": image_png(drawing(COLOURS[n])), "outcome": "kept"}
            for n in range(4)
        ]
        self.artifact("documents", table=pa.Table.from_pylist(rows))
        text = self.artifact("text_tokenizer", files=self.write_text())
        images = self.artifact("image_tokenizer", files=self.write_images())
        self.generator = self.artifact(
            "generator", files=self.write_generator(), inputs=(text, images), ref="generator.ra"
        )

    def artifact(self, kind, *, files=None, table=None, config=None, inputs=(), ref=None):
        shards = [self.file(kind, name, path) for name, path in (files or {}).items()]
        if table is not None:
            shards.append(self.table(kind, table))
        manifest = Manifest(
            kind=kind, schema_version=1, artifact_id=digest_of([kind, [s.sha256 for s in shards]]),
            stage="test", stage_version=1, config=config or {}, shards=tuple(shards),
            inputs=tuple(
                InputRef(name=m.kind, kind=m.kind, artifact_id=m.artifact_id, content_digest="0")
                for m in inputs
            ),
            rows_in=0, rows_out=0, dropped={}, counts={}, facts={}, environment="", run_id="",
            created_at="", seconds=0.0, shards_executed=0,
        )  # fmt: skip
        move_ref(self.store, NAMESPACE, ref or kind, publish(self.store, manifest))
        return manifest

    def file(self, kind, name, path):
        data = path.read_bytes()
        where, sha256 = self.store.put_data(kind, data, path.suffix)
        return Shard(
            name=name, path=where, sha256=sha256, bytes=len(data), rows=0, row_digest="", tags={}
        )

    def table(self, kind, table):
        schema = TABLES[kind]
        table = schema.conform(table.cast(schema.arrow))
        data = encode_shard(table, schema, shard_key="")
        where, sha256 = self.store.put_data(kind, data, ".parquet")
        return Shard(
            name=kind, path=where, sha256=sha256, bytes=len(data), rows=table.num_rows,
            row_digest=row_digest(table, schema), tags={},
        )  # fmt: skip

    def write_text(self):
        self.text = TextTokenizer.train(["a red square", "a blue square"], vocab_size=260)
        path = self.folder / "tokenizer.json"
        path.write_text(self.text.to_json(), encoding="utf-8")
        return {"tokenizer.json": path}

    def write_images(self):
        config = VQGANConfig(image_size=SIZE, codebook_size=4, code_dim=4, widths=(8, 16))
        model = VQGAN(config, generator=torch.Generator().manual_seed(0)).eval()
        with torch.no_grad():  # the four drawings differ in their codes
            model.codebook.vectors.copy_(model.latents(pixels_of(COLOURS))[::4])
            model.codebook.started.fill_(True)
        self.images = model
        paths = {n: self.folder / n for n in ("config.json", "model.safetensors")}
        paths["config.json"].write_bytes(canonical_json(asdict(config)))
        save_file(
            {k: v.contiguous() for k, v in model.state_dict().items()}, paths["model.safetensors"]
        )
        return paths

    def write_generator(self):
        vocabulary = Vocabulary(text_size=self.text.vocab_size, image_size=4, num_sentinels=2)
        layout = Layout(vocabulary=vocabulary, image_tokens=4, max_text_tokens=8)
        config = GeneratorConfig(
            layers=2, width=24, heads=2, positions="document", num_places=layout.places.size,
            init_std=0.4,
        )  # fmt: skip
        model = Generator(config, vocabulary, generator=torch.Generator().manual_seed(0))
        folder = self.folder / "generator"
        folder.mkdir()
        return save_generator(folder, model, layout)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return Published(tmp_path_factory.mktemp("classify"))


@pytest.fixture
def photo(published, tmp_path):
    """A file of another size, format and mode, whose middle has the first document's colour."""
    path = tmp_path / "photo.webp"
    picture = Image.new("RGBA", (90, 60), (*COLOURS[0], 255))
    picture.save(path, lossless=True)
    return path


def test_the_answer_is_that_of_the_generator_with_its_own_tokenizers(published, photo):
    classes = {"dax": (IDS[0][:8], IDS[1]), "wug": (IDS[2], IDS[3][:12])}
    told = classify_image(published.store, NAMESPACE, str(photo), classes, model="ra")
    files = {s.name: published.store.local(s.path) for s in published.generator.shards}
    loaded = load_generator(files)
    red, green, blue, grey = (
        tuple(codes) for codes in published.images.encode(pixels_of(COLOURS)).tolist()
    )
    assert len({red, green, blue, grey}) == 4
    question = Question(image=red, demonstrations=((red, blue), (green, grey)))
    labels = [tuple(published.text.encode(label)) for label in classes]
    (expected,) = classify(loaded.model, loaded.layout, [question], labels, ClassifyConfig())
    assert [list(one.values()) for one in told.sets] == pytest.approx(expected, rel=1e-5)
    assert list(told.probabilities.values()) == pytest.approx(expected.mean(axis=0))
    assert told.label == ("dax", "wug")[int(expected.mean(axis=0).argmax())]
    facts = told.facts()
    assert facts["image"] == {"name": str(photo), "sha256": sha256_bytes(photo.read_bytes())}
    assert [one["document_id"] for one in facts["demonstrations"]["wug"]] == [IDS[2], IDS[3]]
    assert facts["generator"] == published.generator.artifact_id
    assert {facts["text_tokenizer"], facts["image_tokenizer"]} == {
        one.artifact_id for one in published.generator.inputs
    }
    assert [facts[name] for name in ("all_orders", "all_labels", "calibrate")] == [
        True,
        False,
        False,
    ]


def test_a_file_is_normalised_as_the_documents_are(published, photo):
    (found, known) = load_pictures(published.store, NAMESPACE, [str(photo), IDS[0]])
    assert (image_array(found.png) == image_array(known.png)).all()


def test_what_cannot_be_classified_is_said_in_a_sentence(published, tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    classes = {"dax": [IDS[0]], "wug": [IDS[1]]}

    def asked(image=IDS[2], model="ra", **changed):
        return classify_image(published.store, NAMESPACE, image, classes | changed, model=model)

    with pytest.raises(UsageError, match=r"notes\.png is no usable image"):
        asked(str(text))
    with pytest.raises(UsageError, match=r"missing\.png is neither a file nor one document"):
        asked("missing.png")
    with pytest.raises(UsageError, match="6 digits"):
        asked(IDS[2][:3])
    with pytest.raises(UsageError, match=r"has no generator\.other; run the recipe"):
        asked(model="other")
    with pytest.raises(UsageError, match="it must have 1 to 8"):
        asked(**{"a label of very many words": [IDS[3]]})


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("dax=a.png",), "two classes or more"),
        (("dax=a.png", "wug"), "LABEL=image.png"),
        (("dax=a.png", "wug= , "), "LABEL=image.png"),
        (("dax=a.png", "dax=b.png"), "there twice"),
        (("dax=a.png,b.png", "wug=c.png"), "dax 2, wug 1"),
    ],
)
def test_classes_are_read_or_refused(texts, said):
    with pytest.raises(UsageError, match=said):
        read_classes(texts)
    assert read_classes(("dax = a.png, b=1.png", "wug=c.png,d.png")) == {
        "dax": ("a.png", "b=1.png"),
        "wug": ("c.png", "d.png"),
    }


def test_a_tokenizer_that_is_gone_is_named(published, tmp_path):
    other = Published(tmp_path)
    gone = next(one for one in other.generator.inputs if one.kind == "text_tokenizer")
    (other.store.root / "text_tokenizer" / f"{gone.artifact_id}.json").unlink()
    with pytest.raises(UsageError, match=f"text_tokenizer {gone.artifact_id}"):
        classify_image(
            other.store, NAMESPACE, IDS[2], {"dax": [IDS[0]], "wug": [IDS[1]]}, model="ra"
        )
