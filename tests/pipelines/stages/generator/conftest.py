"""A corpus of coloured squares: tokenizers, scorer and examples, and generators trained on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.config import deep_merge
from pipelines.records import image_png
from pipelines.runtime.context import RunContext, start_run
from pipelines.runtime.executor import LocalExecutor
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.run import StageCall, run_stage
from pipelines.runtime.stage import (
    FitOutput,
    FitStage,
    ShardOutput,
    ShardPlan,
    ShardStage,
    StageConfig,
)
from pipelines.runtime.store import LocalStore
from pipelines.stages import generate, train_generator
from racm3.image_tokenizer.vqgan import VQGAN, VQGANConfig
from racm3.text_tokenizer import TextTokenizer
from racm3.training.records import FitConfig
from racm3.training.stream import StreamConfig
from storage_schemas.fingerprint import canonical_json
from storage_schemas.manifest import Manifest
from storage_schemas.tables import TABLES

COLOURS = {"red": (220, 20, 30), "green": (20, 200, 40), "blue": (30, 40, 220), "grey": (99,) * 3}
CATEGORIES = {"red": "bright", "green": "bright", "blue": "dark", "grey": "dark"}
SIZE = 16


class Given(FitStage[StageConfig]):
    """Publishes what a test made."""

    name = "given"
    version = 1
    config_type = StageConfig

    def __init__(self, kind, make):
        self.kind, self.make = kind, make

    def environment(self, config):
        return self.kind

    def fit(self, config, inputs, reader, workspace):
        return FitOutput(files=self.make(workspace.staging))


class GivenTable(ShardStage[StageConfig]):
    """Publishes tables that a test made, one shard each."""

    name = "given_table"
    version = 1
    config_type = StageConfig

    def __init__(self, kind, tables):
        self.kind, self.tables = kind, tables

    def environment(self, config):
        return f"{self.kind} {sorted(self.tables)}"

    def plan(self, config, inputs, reader):
        return [
            ShardPlan(inputs={}, slice={"n": n}, tags=tags) for n, (tags, _) in self.tables.items()
        ]

    def build(self, config, whole, reader):
        def run(plan, reader):
            table = self.tables[plan.slice["n"]][1]
            return ShardOutput(table=table, rows_in=table.num_rows)

        return run


@dataclass(frozen=True, kw_only=True)
class Squares:
    """A store with documents, tokenizers, a scorer and examples, and what one does with it."""

    store: LocalStore
    run: RunContext
    rows: list[dict[str, Any]]
    documents: Manifest
    examples: Mapping[str, Manifest]
    """By role."""
    text: Manifest
    images: Manifest
    scorer: Manifest

    categories: Mapping[str, str]
    """By concept."""

    @property
    def reader(self) -> Reader:
        return Reader(self.store)

    def table(self, made: Manifest, name: str = "") -> pa.Table:
        """The only table of an artifact, or the one of that name."""
        return self.reader.tables(made.tables(name) if name else made.tables())

    def publish(self, stage, config=None, inputs=None, label="given", executor=None):
        return _publish(self.store, self.run, stage, config, inputs, label, executor)

    def give(self, kind, make, label="given"):
        """Publishes files as an artifact of a kind."""
        return self.publish(Given(kind, make), label=label)

    def give_documents(self, name, rows):
        """Documents, and their codes, under a name of their own."""
        tokenizer = _tokenizer(self.rows)
        codes = [
            {"document_id": r["document_id"], "codes": _codes(tokenizer, r)}
            | dict.fromkeys(("grid_height", "grid_width"), SIZE // 4)
            for r in rows
        ]
        tables = {
            "documents": _document_table(rows),
            "image_tokens": pa.Table.from_pylist(codes, schema=TABLES["image_tokens"].arrow),
        }
        return {
            kind: self.publish(GivenTable(kind, {name: ({}, table)}))
            for kind, table in tables.items()
        }

    def give_examples(self, name, table, role="train"):
        """Examples under a name of their own."""
        tags = {"role": role, "set": "", "source": role, "order": "0"}
        return self.publish(GivenTable("examples", {name: (tags, table)}))

    def give_text_tokenizer(self, captions, label="given"):
        text = TextTokenizer.train(captions, vocab_size=280)
        return self.give("text_tokenizer", lambda folder: _write_text(folder, text), label)

    def give_image_tokenizer(self, rows, label="given"):
        model = _tokenizer(rows)
        return self.give("image_tokenizer", lambda folder: _write_vqgan(folder, model), label)

    def to_train_on(self, role: str = "train") -> dict[str, Manifest]:
        """Inputs of train_generator."""
        return {
            "train": self.examples[role],
            "validation": self.examples["validation"],
            "text_tokenizer": self.text,
            "image_tokenizer": self.images,
        }

    def to_generate(self, generator: Manifest) -> dict[str, Manifest]:
        """Inputs of generate."""
        return {
            "generator": generator,
            "examples": self.examples["evaluation"],
            "image_tokenizer": self.images,
            "text_tokenizer": self.text,
        }

    def train(self, max_k, *, stage=None, label="train_generator", executor=None, **changes):
        stage = stage or train_generator.TrainGenerator()
        return self.publish(stage, config_of(max_k, **changes), self.to_train_on(), label, executor)

    def trained(self, changes, *, start=None, **inputs):
        """One generator of few steps, with some of the config and of the inputs changed."""
        values = deep_merge(config_of(2, steps=2).model_dump(), changes)
        given = self.to_train_on() | inputs | ({} if start is None else {"start": start})
        config = train_generator.Config.model_validate(values)
        return self.publish(train_generator.TrainGenerator(), config, given, "train_generator")


def _publish(store, run, stage, config=None, inputs=None, label="given", executor=None):
    call = StageCall(
        stage=stage,
        config=config or StageConfig(),
        inputs={n: Selection.of(m) for n, m in (inputs or {}).items()},
        label=label,
    )
    return run_stage(call, store=store, executor=executor or LocalExecutor(), run=run)


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Squares:
    store = LocalStore(tmp_path_factory.mktemp("store"))
    run = start_run(store, "test", {})

    def give(stage: Any) -> Manifest:
        return _publish(store, run, stage)

    rows = list(_documents())
    text = TextTokenizer.train([r["caption"] for r in rows], vocab_size=280)
    tokenizer = _tokenizer(rows)
    codes = {r["document_id"]: _codes(tokenizer, r) for r in rows}
    return Squares(
        store=store,
        run=run,
        rows=rows,
        categories=CATEGORIES,
        documents=give(GivenTable("documents", {"0": ({}, _document_table(rows))})),
        examples={
            role: give(
                GivenTable(
                    "examples",
                    {role: ({"role": role, "set": "", "source": role, "order": "0"}, table)},
                )
            )
            for role, table in _example_tables(rows, codes, text)
        },
        text=give(Given("text_tokenizer", lambda f: _write_text(f, text))),
        images=give(Given("image_tokenizer", lambda f: _write_vqgan(f, tokenizer))),
        scorer=give(Given("scorer", lambda f: _write_clip(f, rows))),
    )


@pytest.fixture(scope="package")
def config() -> Callable[..., train_generator.Config]:
    """Makes the config of a small generator."""
    return config_of


@pytest.fixture(scope="package")
def generators(world: Squares) -> dict[str, Manifest]:
    return {"ra-cm3": world.train(2), "vanilla": world.train(0)}


@pytest.fixture(scope="package")
def generations(world: Squares, generators: dict[str, Manifest]) -> dict[str, Manifest]:
    made = {}
    for model, memory in (("ra-cm3", "restricted"), ("vanilla", None)):
        config = generate.Config(
            model=model, memory=memory, k=2 if memory else 0, prompts_per_shard=4
        )
        inputs = world.to_generate(generators[model])
        made[model] = world.publish(generate.Generate(), config, inputs, "generate")
    return made


def _documents():
    rng = np.random.default_rng(0)
    for n in range(48):
        colour = list(COLOURS)[n % len(COLOURS)]
        pixels = np.clip(np.array(COLOURS[colour]) + rng.integers(-15, 15, (SIZE, SIZE, 3)), 0, 255)
        yield {
            "row_id": f"row{n:02d}",
            "document_id": f"doc{n:02d}",
            "caption": f"a {colour} square number {n}",
            "image": image_png(pixels.astype(np.uint8)),
            "pixels": pixels.astype(np.uint8),
            "role": ("train", "train", "train", "validation", "evaluation")[n % 5],
            "concept": colour,
        }


def _document_table(rows):
    table = [
        {name: r.get(name) for name in TABLES["documents"].arrow.names}
        | {"outcome": "kept", "source": r.get("source", "s")}
        for r in rows
    ]
    return pa.Table.from_pylist(table, schema=TABLES["documents"].arrow)


def _tokenizer(rows):
    model = VQGAN(
        VQGANConfig(image_size=SIZE, codebook_size=8, code_dim=4, patch=4, widths=(8, 16)),
        generator=torch.Generator().manual_seed(0),
    ).eval()
    pixels = torch.from_numpy(np.stack([r["pixels"] for r in rows])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        latents = (
            model.latents(pixels.float()).permute(0, 2, 3, 1).reshape(-1, 4)
            if model.latents(pixels.float()).ndim == 4
            else model.latents(pixels.float())
        )
        model.codebook.vectors.copy_(latents[:: len(latents) // 8][:8])
        model.codebook.started.fill_(True)
    return model


def _codes(tokenizer, row):
    pixels = torch.from_numpy(row["pixels"]).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        return tokenizer.encode(pixels.float())[0].tolist()


def _example_tables(rows, codes, text):
    train = [r for r in rows if r["role"] == "train"]
    for role in ("train", "validation", "evaluation"):
        made = []
        for r in rows:
            if r["role"] != role:
                continue
            near = [t for t in train if t["concept"] == r["concept"] and t is not r][:2]
            made.append(
                {
                    "example_id": "e" + r["document_id"],
                    "document_id": r["document_id"],
                    "source": role,
                    "role": role,
                    "set": "squares" if role == "evaluation" else None,
                    "group": "warm" if r["concept"] == "red" else None,
                    "concept": r["concept"],
                    "category": CATEGORIES[r["concept"]] if role == "evaluation" else "other",
                    "text_tokens": text.encode(r["caption"]),
                    "image_tokens": codes[r["document_id"]],
                    "queries": ["text", "image"],
                    "draws": [0, 0],
                    "hits": [[0, 1], [1, 0]],
                    "candidate_ids": [t["document_id"] for t in near],
                    "candidate_text": [text.encode(t["caption"]) for t in near],
                    "candidate_image": [codes[t["document_id"]] for t in near],
                }
            )
        yield role, pa.Table.from_pylist(made, schema=TABLES["examples"].arrow)


def _write_text(folder, text):
    (folder / "tokenizer.json").write_text(text.to_json())
    return {"tokenizer.json": folder / "tokenizer.json"}


def _write_vqgan(folder, model):
    from safetensors.torch import save_file

    (folder / "config.json").write_bytes(canonical_json(asdict(model.config)))
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return {n: folder / n for n in ("config.json", "model.safetensors")}


def _write_clip(folder, rows):
    from safetensors.torch import save_file

    from racm3.encoder.clip import ClipSpec, make_clip
    from racm3.encoder.tokenizer import EncoderTokenizer

    tokenizer = EncoderTokenizer.train([r["caption"] for r in rows], vocab_size=280)
    spec = ClipSpec(
        model={
            "embed_dim": 8,
            "vision_cfg": {
                "image_size": SIZE, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8
            },
            "text_cfg": {
                "context_length": 16, "vocab_size": tokenizer.vocab_size,
                "width": 16, "heads": 2, "layers": 1,
            },
        },
        tokenizer_json=tokenizer.to_json(),
    )  # fmt: skip
    torch.manual_seed(0)
    state = {k: v.contiguous() for k, v in make_clip(spec.model).state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_bytes(canonical_json(asdict(spec)))
    return {n: folder / n for n in ("config.json", "model.safetensors")}


def config_of(max_k, steps=24, accumulate=1, **changes):
    return train_generator.Config(
        layers=2,
        width=24,
        heads=3,
        positions="document",
        init_std=0.2,
        num_sentinels=16,
        stream=StreamConfig(batch_size=4, max_k=max_k, max_text_tokens=12, max_length=256),
        fit=FitConfig(
            steps=steps,
            learning_rate=5e-3,
            warmup_steps=2,
            validate_every=8,
            checkpoint_every=4,
            accumulate=accumulate,
        ),
        validation_k=max_k,
        validation_ks=(0, max_k),
        loss_bucket=18 if max_k else None,
        **changes,
    )
