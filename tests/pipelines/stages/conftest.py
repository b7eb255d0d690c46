"""A tiny corpus of drawn shapes, and the artifacts of each stage made of it, once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw

from pipelines.records import image_png
from pipelines.runtime.catalog import publish
from pipelines.runtime.context import start_run
from pipelines.runtime.executor import LocalExecutor
from pipelines.runtime.ledger import NewSource, add_sources, as_selection
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.run import StageCall, run_stage
from pipelines.runtime.stage import Stage, StageConfig
from pipelines.runtime.store import LocalStore
from storage_schemas.fingerprint import digest_of, sha256_bytes
from storage_schemas.ids import caption_sha256, document_id, row_id
from storage_schemas.manifest import Manifest, Shard
from storage_schemas.parquet import encode_shard, row_digest
from storage_schemas.tables import KINDS, TABLES

COLORS = {"red": (220, 30, 30), "green": (20, 150, 40), "blue": (30, 60, 220), "black": (9, 9, 9)}
SHAPES = ("circle", "square", "triangle", "bar", "ring", "cross")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class World:
    """A store and what one does with it."""

    store: LocalStore

    @property
    def reader(self) -> Reader:
        return Reader(self.store)

    def run(self, stage: Stage[Any], config: StageConfig, **inputs: Any) -> Manifest:
        selected = {
            name: Selection.of(value) if isinstance(value, Manifest) else value
            for name, value in inputs.items()
        }
        call = StageCall(stage=stage, config=config, inputs=selected, label=stage.name)
        run = start_run(self.store, "test", {})
        return run_stage(call, store=self.store, executor=LocalExecutor(tries=1), run=run)

    def table(self, manifest: Manifest, name: str | None = None) -> pa.Table:
        return self.reader.tables(manifest.tables(name))

    def rows(self, manifest: Manifest, name: str | None = None) -> list[dict[str, Any]]:
        return self.table(manifest, name).to_pylist()

    def publish(self, kind: str, shards: Sequence[tuple[pa.Table, Mapping[str, str]]]) -> Manifest:
        """Publishes tables as an artifact that no stage made."""
        schema = TABLES[KINDS[kind][0]]
        stored = [self._shard(kind, schema.conform(table), tags) for table, tags in shards]
        manifest = Manifest(
            kind=kind,
            schema_version=1,
            artifact_id=digest_of([[s.row_digest, dict(s.tags)] for s in stored]),
            stage="test",
            stage_version=1,
            config={},
            inputs=(),
            shards=tuple(stored),
            rows_in=0,
            rows_out=0,
            dropped={},
            counts={},
            facts={},
            environment="",
            run_id="",
            created_at="",
            seconds=0.0,
            shards_executed=0,
        )
        return publish(self.store, manifest)

    def _shard(self, kind: str, table: pa.Table, tags: Mapping[str, str]) -> Shard:
        schema = TABLES[KINDS[kind][0]]
        data = encode_shard(table, schema, shard_key="")
        path, sha256 = self.store.put_data(kind, data, ".parquet")
        return Shard(
            name=schema.kind,
            path=path,
            sha256=sha256,
            bytes=len(data),
            rows=table.num_rows,
            row_digest=row_digest(table, schema),
            tags=dict(tags),
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(LocalStore(tmp_path / "store"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One store a session, for what is slow to make."""
    return World(LocalStore(tmp_path_factory.mktemp("shared") / "store"))


# --- sources ----------------------------------------------------------------------------------


@pytest.fixture
def sources_of(world: World, tmp_path: Path) -> Callable[..., Selection]:
    """Writes tables as source files and enters them in the ledger, in order."""

    def make(*tables: pa.Table, role: str = "train") -> Selection:
        named = []
        for index, table in enumerate(tables):
            path = tmp_path / f"file{index}.parquet"
            pq.write_table(table, path)
            named.append(
                NewSource(
                    source=f"source{index}",
                    path=path,
                    role=role,
                    set="drawn" if role == "evaluation" else None,
                    as_of="2026-01-01",
                )
            )
        return as_selection(add_sources(world.store, "test", named))

    return make


# --- documents --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def draw() -> Callable[..., np.ndarray]:
    """Draws a shape: RGB uint8 [size, size, 3]."""

    def make(color: str, shape: str, size: int = 32, shift: int = 0) -> np.ndarray:
        picture = Image.new("RGB", (size, size), "white")
        pen, fill = ImageDraw.Draw(picture), COLORS[color]
        low, high = size // 5 + shift, size - size // 5 + shift
        if shape == "circle":
            pen.ellipse((low, low, high, high), fill=fill)
        elif shape == "square":
            pen.rectangle((low, low, high, high), fill=fill)
        elif shape == "triangle":
            pen.polygon([(low, high), (high, high), (size // 2, low)], fill=fill)
        elif shape == "bar":
            pen.rectangle((low, size // 2 - 3, high, size // 2 + 3), fill=fill)
        elif shape == "ring":
            pen.ellipse((low, low, high, high), outline=fill, width=3)
        else:
            pen.line((low, low, high, high), fill=fill, width=4)
            pen.line((low, high, high, low), fill=fill, width=4)
        return np.asarray(picture, dtype=np.uint8)

    return make


@pytest.fixture(scope="session")
def document_rows(draw: Callable[..., np.ndarray]) -> Callable[..., pa.Table]:
    """Rows of `documents` of one source: every colour and shape, moved by `shift` pixels."""

    def make(source: str, role: str, *, shift: int, only: slice = slice(None)) -> pa.Table:
        kinds = [(color, shape) for color in COLORS for shape in SHAPES][only]
        rows = []
        for index, (color, shape) in enumerate(kinds):
            png = image_png(draw(color, shape, shift=shift))
            caption = f"a {color} {shape} moved by {shift}"
            rows.append(
                {
                    "row_id": row_id(source, index),
                    "document_id": document_id(sha256_bytes(png), caption_sha256(caption)),
                    "source": source,
                    "role": role,
                    "set": "drawn" if role == "evaluation" else None,
                    "group": color,
                    "concept": shape,
                    "category": color,
                    "caption": caption,
                    "width": 32,
                    "height": 32,
                    "image": png,
                    "pixel_sha256": sha256_bytes(png),
                    "perceptual_hash": "0" * 16,
                    "duplicate_of": None,
                    "outcome": "kept",
                }
            )
        lost = dict.fromkeys(rows[0]) | {
            "row_id": row_id(source, 999),
            "source": source,
            "role": role,
            "caption": "a picture that never came",
            "outcome": "download_failed",
        }
        return pa.Table.from_pylist([*rows, lost], schema=TABLES["documents"].arrow)

    return make


def tags_of(source: str, role: str, order: int) -> dict[str, str]:
    named = "drawn" if role == "evaluation" else ""
    return {
        "source": source,
        "role": role,
        "set": named,
        "as_of": "2026-01-01",
        "order": f"{order:08d}",
        "start": f"{0:010d}",
    }


@pytest.fixture(scope="session")
def documents(shared: World, document_rows: Callable[..., pa.Table]) -> Manifest:
    """66 documents in five shards: two train, one of each other role; each with a lost row."""
    parts = [
        ("left", "train", -3, slice(None)),
        ("right", "train", 3, slice(None)),
        ("extra", "memory", 1, slice(0, 6)),
        ("held", "validation", 2, slice(6, 12)),
        ("asked", "evaluation", -1, slice(12, 18)),
    ]
    return shared.publish(
        "documents",
        [
            (document_rows(name, role, shift=shift, only=only), tags_of(name, role, index))
            for index, (name, role, shift, only) in enumerate(parts)
        ],
    )


# --- what the stages make of them -------------------------------------------------------------


@pytest.fixture(scope="session")
def encoder_config() -> StageConfig:
    from pipelines.stages.train_encoder import Config
    from racm3.training.encoder import EncoderShape, EncoderTrainingConfig
    from racm3.training.records import FitConfig

    shape = EncoderShape(
        embed_dim=16, image_width=32, image_layers=1, text_width=32, vocab_size=300
    )
    fit = FitConfig(steps=8, learning_rate=2e-3, warmup_steps=2, validate_every=4, log_every=4)
    return Config(training=EncoderTrainingConfig(shape=shape, fit=fit, batch_size=16))


@pytest.fixture(scope="session")
def encoder(shared: World, documents: Manifest, encoder_config: StageConfig) -> Manifest:
    from pipelines.stages.train_encoder import TrainEncoder

    return shared.run(
        TrainEncoder("encoder"),
        encoder_config,
        documents=Selection.of(documents, role={"train"}),
        validation=Selection.of(documents, role={"validation"}),
    )


@pytest.fixture(scope="session")
def image_tokenizer_config() -> StageConfig:
    from pipelines.stages.train_image_tokenizer import Config
    from racm3.image_tokenizer.vqgan import VQGANConfig
    from racm3.training.image_tokenizer import ImageTokenizerTaskConfig
    from racm3.training.records import FitConfig

    return Config(
        model=VQGANConfig(image_size=16, codebook_size=16, code_dim=4, widths=(8, 16)),
        task=ImageTokenizerTaskConfig(batch_size=8, warmup_steps=4, start_batches=2),
        fit=FitConfig(
            steps=12, learning_rate=2e-3, warmup_steps=2, validate_every=6, weight_decay=0
        ),
    )


@pytest.fixture(scope="session")
def image_tokenizer(
    shared: World, documents: Manifest, image_tokenizer_config: StageConfig
) -> Manifest:
    from pipelines.stages.train_image_tokenizer import TrainImageTokenizer

    return shared.run(
        TrainImageTokenizer(),
        image_tokenizer_config,
        documents=Selection.of(documents, role={"train"}),
        validation=Selection.of(documents, role={"validation"}),
    )


@pytest.fixture(scope="session")
def text_tokenizer(shared: World, documents: Manifest) -> Manifest:
    from pipelines.stages.train_text_tokenizer import Config, TrainTextTokenizer

    train = Selection.of(documents, role={"train"})
    return shared.run(TrainTextTokenizer(), Config(vocab_size=270), documents=train)


@pytest.fixture(scope="session")
def embeddings(shared: World, documents: Manifest, encoder: Manifest) -> Manifest:
    from pipelines.stages.embed_documents import Config, EmbedDocuments

    return shared.run(EmbedDocuments(), Config(draws=2), documents=documents, encoder=encoder)


@pytest.fixture(scope="session")
def image_tokens(shared: World, documents: Manifest, image_tokenizer: Manifest) -> Manifest:
    from pipelines.stages.tokenize_images import Config, TokenizeImages

    return shared.run(
        TokenizeImages(),
        Config(batch_size=8),
        documents=documents,
        image_tokenizer=image_tokenizer,
    )


@pytest.fixture(scope="session")
def memory(shared: World, embeddings: Manifest) -> Manifest:
    from pipelines.stages.build_memory import BuildMemory, Config

    return shared.run(
        BuildMemory(), Config(), embeddings=Selection.of(embeddings, role={"train", "memory"})
    )


@pytest.fixture(scope="session")
def contexts(shared: World, embeddings: Manifest, memory: Manifest) -> Manifest:
    from pipelines.stages.retrieve_contexts import Config, RetrieveContexts
    from racm3.retriever.selection import SelectionConfig

    config = Config(selection=SelectionConfig(near_copy=None))
    return shared.run(RetrieveContexts(), config, embeddings=embeddings, memory=memory)
