"""train_generator, generate and score_generations, on a corpus of coloured squares."""

import math
import sys
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from pipelines.config import deep_merge
from pipelines.errors import Diverged, PoisonedShards, UsageError
from pipelines.models import device, load_generator, load_text_tokenizer
from pipelines.records import examples_of, image_png
from pipelines.runtime.context import start_run
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
from pipelines.stages import generate, score_generations, train_generator
from racm3.image_tokenizer.vqgan import VQGAN, VQGANConfig
from racm3.text_tokenizer import TextTokenizer
from racm3.training.records import FitConfig
from racm3.training.stream import StreamConfig
from storage_schemas.fingerprint import canonical_json
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


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with documents, tokenizers, a scorer and examples."""
    store = LocalStore(tmp_path_factory.mktemp("store"))
    run = start_run(store, "test", {})

    def publish(stage, config=None, inputs=None, label="given", executor=None):
        call = StageCall(
            stage=stage,
            config=config or StageConfig(),
            inputs={n: Selection.of(m) for n, m in (inputs or {}).items()},
            label=label,
        )
        return run_stage(call, store=store, executor=executor or LocalExecutor(), run=run)

    rows = list(_documents())
    text = TextTokenizer.train([r["caption"] for r in rows], vocab_size=280)
    tokenizer = _tokenizer(rows)
    codes = {r["document_id"]: _codes(tokenizer, r) for r in rows}
    documents = publish(GivenTable("documents", {"0": ({}, _document_table(rows))}))
    examples = {
        role: publish(
            GivenTable(
                "examples",
                {role: ({"role": role, "set": "", "source": role, "order": "0"}, table)},
            )
        )
        for role, table in _example_tables(rows, codes, text)
    }
    return {
        "store": store,
        "run": run,
        "publish": publish,
        "documents": documents,
        "examples": examples,
        "text": publish(Given("text_tokenizer", lambda f: _write_text(f, text))),
        "images": publish(Given("image_tokenizer", lambda f: _write_vqgan(f, tokenizer))),
        "scorer": publish(Given("scorer", lambda f: _write_clip(f, rows))),
    }


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
        {
            name: r.get(name)
            for name in TABLES["documents"].arrow.names
            if name not in ("outcome", "source")
        }
        | {"outcome": "kept", "source": "s"}
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


def _config(max_k, steps=24, accumulate=1, **changes):
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


def _train(world, max_k, *, stage=None, label="train_generator", executor=None, **changes):
    inputs = {
        "train": world["examples"]["train"],
        "validation": world["examples"]["validation"],
        "text_tokenizer": world["text"],
        "image_tokenizer": world["images"],
    }
    stage = stage or train_generator.TrainGenerator()
    return world["publish"](stage, _config(max_k, **changes), inputs, label, executor)


@pytest.fixture(scope="module")
def generators(world):
    return {"ra-cm3": _train(world, 2), "vanilla": _train(world, 0)}


@pytest.fixture(scope="module")
def generations(world, generators):
    made = {}
    for model, memory in (("ra-cm3", "restricted"), ("vanilla", None)):
        config = generate.Config(
            model=model, memory=memory, k=2 if memory else 0, prompts_per_shard=4
        )
        inputs = {
            "generator": generators[model],
            "examples": world["examples"]["evaluation"],
            "image_tokenizer": world["images"],
            "text_tokenizer": world["text"],
        }
        made[model] = world["publish"](generate.Generate(), config, inputs, "generate")
    return made


def test_every_step_has_the_digest_of_what_it_was_shown(world, generators):
    batches = Reader(world["store"]).tables(generators["ra-cm3"].tables("training_batches"))
    assert batches.column("step").to_pylist() == list(range(24))
    assert max(batches.column("k").to_pylist()) == 2
    vanilla = Reader(world["store"]).tables(generators["vanilla"].tables("training_batches"))
    assert set(vanilla.column("k").to_pylist()) == {0}


def test_training_learns(world, generators):
    log = Reader(world["store"]).tables(generators["ra-cm3"].tables("training_log")).to_pylist()
    losses = [r["value"] for r in log if (r["split"], r["metric"]) == ("validation", "loss")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["ra-cm3", "vanilla"])
def test_losses_are_logged_by_role_modality_and_position(world, generators, name):
    log = Reader(world["store"]).tables(generators[name].tables("training_log")).to_pylist()
    found = {r["metric"] for r in log if r["split"] == "train"}
    reads = name == "ra-cm3"
    assert {"loss", "main_image", "main_text"} <= found
    assert ("context_image" in found) == reads
    assert ({"main_image_at_0", "main_image_at_18", "context_image_at_0"} <= found) == reads
    assert all(math.isfinite(r["value"]) for r in log)


def test_a_published_generator_reads_back(world, generators):
    loaded = load_generator(Reader(world["store"]).files(Selection.of(generators["ra-cm3"])))
    assert loaded.layout.image_tokens == 4
    assert loaded.model.config.num_slots == 3


def test_evaluation_examples_are_refused_as_training_data(world):
    inputs = {
        "train": world["examples"]["evaluation"],
        "validation": world["examples"]["validation"],
        "text_tokenizer": world["text"],
        "image_tokenizer": world["images"],
    }
    with pytest.raises(UsageError, match="evaluation"):
        world["publish"](train_generator.TrainGenerator(), _config(0), inputs, "t")


class Spoilt(train_generator.TrainGenerator):
    """Its last worker's loss is infinite at one step, as long as a file is there."""

    def __init__(self, step, mark):
        self.step, self.mark = step, mark

    def fit(self, config, inputs, reader, workspace):
        from racm3.training import generator as module

        with self.mark.open("a") as file:
            file.write(f"{workspace.rank}\n")
        whole = module.GeneratorTask.loss

        def spoilt(task, step, **ranks):
            loss, numbers = whole(task, step, **ranks)
            last = ranks["rank"] == ranks["world_size"] - 1
            return loss * (float("inf") if step == self.step and last else 1.0), numbers

        module.GeneratorTask.loss = spoilt
        try:
            return super().fit(config, inputs, reader, workspace)
        finally:
            module.GeneratorTask.loss = whole


class KilledError(Exception):
    pass


def _dies(task):
    raise KilledError


def _spoils_a_weight(task):
    with torch.no_grad():
        task.model.blocks[0].ffn_in.weight[0, 0] = torch.inf


def _interrupted(world, trouble, **changed):
    """Trains until something happens to the task before step 14; returns the error."""
    from racm3.training import generator as module

    whole = module.GeneratorTask.loss

    def troubled(self, step, **ranks):
        if step == 14:
            trouble(self)
        return whole(self, step, **ranks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.GeneratorTask, "loss", troubled)
        with pytest.raises((KilledError, Diverged)) as found:
            _train(world, 2, **changed)
    return found.value


def _assert_told(world, sentence, label):
    """One sentence names stage, step, batch and examples."""
    assert sentence.startswith(f"stage {label}: step 14 has a loss of ")
    ids = sentence.partition("examples ")[2].partition(":")[0].split(", ")
    examples = Reader(world["store"]).tables(world["examples"]["train"].tables())
    assert len(ids) == 4
    assert set(ids) <= set(examples.column("example_id").to_pylist())


@pytest.mark.parametrize("trouble", [_dies, _spoils_a_weight])
def test_an_interrupted_training_goes_on_with_the_same_next_batch(
    world, trouble, monkeypatch, read_events
):
    """Interrupted in the middle, published bytes are those of the undisturbed run."""
    from racm3.training import generator as module

    whole = module.GeneratorTask.loss
    changed = {"steps": 25, "label": f"train_generator[{trouble.__name__}]"}
    undisturbed = _train(world, 2, steps=25)
    (world["store"].root / "generator" / f"{undisturbed.artifact_id}.json").unlink()
    error = _interrupted(world, trouble, **changed)
    if isinstance(error, Diverged):
        _assert_told(world, str(error), changed["label"])
    seen = []

    def watched(self, step, **ranks):
        seen.append(step)
        return whole(self, step, **ranks)

    monkeypatch.setattr(module.GeneratorTask, "loss", watched)
    resumed = _train(world, 2, **changed)
    assert seen[0] == 12
    shown = [Reader(world["store"]).tables(m.tables("training_batches")).to_pylist()
             for m in (undisturbed, resumed)]  # fmt: skip
    assert shown[0] == shown[1]
    if device() == "cpu":  # a GPU adds up in any order
        assert resumed.content_digest == undisturbed.content_digest
    events = read_events(
        world["run"].folder / "tensorboard" / changed["label"][:-1].replace("[", ".")
    )
    log = Reader(world["store"]).tables(resumed.tables("training_log")).to_pylist()
    expected = {(f"{r['split']}/{r['metric']}", r["step"]): r["value"] for r in log}
    found = {(tag, step): value for tag, step, value in events}
    assert len(found) == len(events)
    assert expected.keys() <= found.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6)


def test_what_a_machine_has_is_no_part_of_the_artifact(world):
    base, same = _config(2), _config(2, workers=2)
    assert base.canonical() == same.canonical()
    assert base.canonical() != _config(2, sharding="fsdp2").canonical()


def test_rows_for_every_worker_and_micro_batch_are_asked_for():
    for changes in ({"workers": 3}, {"workers": 2, "accumulate": 3}):
        with pytest.raises(ValidationError, match=r"stream\.batch_size 4 cannot be dealt"):
            _config(2, **changes)


@pytest.mark.slow  # Ray Train starts; run by make test-all
@pytest.mark.ray
@pytest.mark.timeout(240)
def test_a_sharded_training_of_two_workers_ends_at_once_and_one_process_takes_over(
    world, tmp_path, ray_executor
):
    """FSDP2 under Ray Train: the infinite loss of one worker ends both, without another try."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    changed = {"workers": 2, "sharding": "fsdp2", "steps": 26, "label": "train_generator[two]"}
    undisturbed = _train(world, 2, **changed)  # in this process: one worker, nothing is sharded
    (world["store"].root / "generator" / f"{undisturbed.artifact_id}.json").unlink()
    mark = tmp_path / "tries"
    with pytest.raises(Diverged) as found:
        _train(world, 2, stage=Spoilt(14, mark), executor=ray_executor, **changed)
    _assert_told(world, str(found.value), changed["label"])
    assert sorted(mark.read_text().split()) == ["0", "1"]
    resumed = _train(world, 2, **changed)
    log, other = (
        {
            (row["step"], row["split"], row["metric"]): row["value"]
            for row in Reader(world["store"]).tables(made.tables("training_log")).to_pylist()
        }
        for made in (undisturbed, resumed)
    )
    assert ("validation", "image_ppl_k2") in {key[1:] for key in log}
    shown = [
        Reader(world["store"]).tables(made.tables("training_batches")).to_pylist()
        for made in (undisturbed, resumed)
    ]
    assert shown[0] == shown[1]  # whole batches, whoever reads them
    assert other == pytest.approx(log, rel=1e-4)


def test_one_sample_a_prompt_and_task_with_contexts_in_the_order_fed(world, generations):
    rows = Reader(world["store"]).tables(generations["ra-cm3"].tables("generations")).to_pylist()
    evaluation = [r for r in _documents() if r["role"] == "evaluation"]
    assert len(rows) == 2 * len(evaluation)
    examples = Reader(world["store"]).tables(world["examples"]["evaluation"].tables()).to_pylist()
    candidates = {e["document_id"]: e["candidate_ids"] for e in examples}
    for row in rows:
        first, second = candidates[row["prompt_id"]]
        image = row["task"] == "image"
        assert row["contexts"] == ([first, second] if image else [second, first])
        assert (row["image"] is not None) == image
        assert (row["caption"] is None) == image
        assert row["generator"] == generations["ra-cm3"].inputs[1].artifact_id
    assert len({r["generation_id"] for r in rows}) == len(rows)


def test_more_images_a_prompt_go_on_from_the_first(world, generators, generations):
    config = generate.Config(
        model="ra-cm3", memory="restricted", prompts_per_shard=4, images_per_prompt=3
    )
    inputs = {
        "generator": generators["ra-cm3"],
        "examples": world["examples"]["evaluation"],
        "image_tokenizer": world["images"],
        "text_tokenizer": world["text"],
    }
    more = world["publish"](generate.Generate(), config, inputs, "generate")
    reader = Reader(world["store"])
    many = {r["generation_id"]: r for r in reader.tables(more.tables("generations")).to_pylist()}
    single = reader.tables(generations["ra-cm3"].tables("generations")).to_pylist()
    asked = Counter((r["prompt_id"], r["task"]) for r in many.values())
    assert asked == {(r["prompt_id"], r["task"]): 3 if r["image"] else 1 for r in single}
    assert more.rows_in == more.rows_out == len(many) == 2 * len(single)
    for row in single:
        other = many[row["generation_id"]]
        assert other["output_tokens"] == row["output_tokens"]
        assert other["image"] == row["image"]
        # summed in batches of other sizes
        assert other["log_likelihood"] == pytest.approx(row["log_likelihood"], rel=1e-5)


def test_seeds_do_not_depend_on_the_model(world, generations):
    reader = Reader(world["store"])
    seeds = [
        {(r["prompt_id"], r["task"]): r["seed"] for r in reader.tables(m.tables()).to_pylist()}
        for m in generations.values()
    ]
    assert seeds[0] == seeds[1]


def test_prompts_are_chosen_by_document_whatever_the_shards_and_the_memory():
    def rows(memory, shards):
        return [
            (
                n % shards,
                {
                    "example_id": f"{(7 * n + memory) % 9}",
                    "document_id": f"{n:02d}",
                    "set": "s",
                    "group": "ab"[n % 2],
                },
            )
            for n in range(9)
        ]

    for memory, shards in ((0, 3), (4, 2)):
        chosen = generate._choose(rows(memory, shards), 2)
        assert sorted(r["document_id"] for _, r in chosen) == ["00", "01", "02", "03"]
    assert generate._choose(rows(0, 3), None) == rows(0, 3)


@pytest.mark.parametrize("order", ["best_first", "best_last", "shuffled"])
def test_contexts_are_fed_in_the_order_that_is_named(world, generators, generations, order):
    config = generate.Config(
        model="ra-cm3", memory="restricted", k=2, tasks=("caption",), context_order=order
    )
    inputs = {
        "generator": generators["ra-cm3"],
        "examples": world["examples"]["evaluation"],
        "image_tokenizer": world["images"],
        "text_tokenizer": world["text"],
    }
    made = world["publish"](generate.Generate(), config, inputs, "generate")
    reader = Reader(world["store"])
    ranked = {
        row["prompt_id"]: row
        for row in reader.tables(generations["ra-cm3"].tables()).to_pylist()
        if row["task"] == "caption"
    }
    turned = 0
    for row in reader.tables(made.tables()).to_pylist():
        best_first = ranked[row["prompt_id"]]["contexts"]
        assert sorted(row["contexts"]) == sorted(best_first)
        turned += row["contexts"] == best_first[::-1]
        if order == "best_first":
            assert row["log_likelihood"] == ranked[row["prompt_id"]]["log_likelihood"]
    least, most = {"best_first": (0, 0), "best_last": (9, 9), "shuffled": (1, 8)}[order]
    assert least <= turned <= most


def test_the_order_of_the_contexts_reaches_the_perplexities(world, generators):
    from pipelines.scoring.perplexities import Contender, _nll

    examples = examples_of(
        Reader(world["store"]).tables(world["examples"]["evaluation"].tables("examples"))
    )
    loaded = load_generator(Reader(world["store"]).files(Selection.of(generators["ra-cm3"])))
    first, last = (
        _nll(
            Contender(name="ra", generator=loaded, reads_contexts=True, order=order),
            some, "image", 2, None, 0,
        ).nll
        for order, some in (
            ("best_last", examples),
            ("best_first", [_turned(example) for example in examples]),
        )
    )  # fmt: skip
    assert first.tolist() == last.tolist()


def _turned(example):
    queries = [
        replace(q, contexts=q.contexts[::-1], document_ids=q.document_ids[::-1])
        for q in example.queries
    ]
    return replace(example, queries=tuple(queries))


def test_a_lost_sample_is_noticed(world, generators, monkeypatch):
    whole = generate.Writer.write

    def loses_one(self, table):
        written, dropped = whole(self, table)
        return written[1:], dropped

    monkeypatch.setattr(generate.Writer, "write", loses_one)
    inputs = {
        "generator": generators["vanilla"],
        "examples": world["examples"]["evaluation"],
        "image_tokenizer": world["images"],
        "text_tokenizer": world["text"],
    }
    config = generate.Config(model="vanilla", k=0, tasks=("caption",), seed=1)
    with pytest.raises(PoisonedShards, match="this is a defect"):
        world["publish"](generate.Generate(), config, inputs, "generate")


@pytest.fixture(scope="module")
def score_inputs(world, generators, generations):
    return {
        "generator.ra-cm3": generators["ra-cm3"],
        "generator.vanilla": generators["vanilla"],
        "generations.ra-cm3.restricted": generations["ra-cm3"],
        "generations.vanilla.none": generations["vanilla"],
        "examples.restricted": world["examples"]["evaluation"],
        "train": world["examples"]["train"],
        "documents": world["documents"],
        "scorer": world["scorer"],
        "image_tokenizer": world["images"],
        "text_tokenizer": world["text"],
    }


def _scores(world, inputs, **config):
    """Rows, and facts of the manifest."""
    scores = world["publish"](
        score_generations.ScoreGenerations(),
        score_generations.Config(resamples=200, **config),
        inputs,
        "score_generations",
    )
    return Reader(world["store"]).tables(scores.tables()).to_pylist(), scores.facts


def test_few_shot_rows_for_every_model_k_and_slice(world, score_inputs):
    """Four colours in two categories that training does not have: one demonstration at most."""
    inputs = score_inputs | {"text_tokenizer": world["text"]}
    rows, facts = _scores(world, inputs, few_shot={"trials": 20})
    slices = {"squares": [2, 4, 8], "squares, new categories": [2, 4, 8]}
    assert facts == {"few_shot_left_out": slices}
    told = {
        (r["metric"], r["model"], r["group"], r["k"]): r for r in rows if r["task"] == "classify"
    }
    slices = ("", "new categories")
    ways = ("few_shot", "few_shot_channel")
    models = ("ra-cm3", "vanilla")
    expected = {(f"{way}_accuracy", m, g, 1) for way in ways for m in models for g in slices}
    expected |= {(f"{way}_gain", "ra-cm3", g, 1) for way in ways for g in slices}
    assert set(told) == expected
    for (metric, model, group, _), row in told.items():
        assert (row["n"], row["set"], row["memory"]) == (20, "squares", "demonstrations")
        assert row["low"] <= row["value"] <= row["high"]
        if metric.endswith("_gain"):
            accuracy = metric.replace("_gain", "_accuracy")
            both = [told[accuracy, m, group, 1]["value"] for m in (model, "vanilla")]
            assert row["value"] == pytest.approx(both[0] - both[1])
        else:
            assert "two of 2 categories" in row["protocol"]
            if metric == "few_shot_accuracy":
                assert row["reference"].startswith("RA-CM3 0.78")
            else:  # the paper did not ask so
                assert row["reference"] is None
                assert "likelihood of the image's codes" in row["protocol"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ks": ()}, "one number"),
        ({"ks": (0, 1)}, "from 1 on"),
        ({"labels": ("dax", "dax")}, "different"),
        ({"labels": ("dax", "")}, "empty"),
    ],
)
def test_few_shot_settings_that_ask_nothing_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        score_generations.Config(few_shot=wrong)


def test_the_score_table_has_every_row_that_was_asked_for(world, score_inputs):
    rows, facts = _scores(world, score_inputs)
    assert facts == {}
    assert not [row for row in rows if row["task"] == "classify"]
    found = {(r["metric"], r["model"], r["task"], r["group"], r["k"], r["memory"]): r for r in rows}
    for k, memory in ((0, ""), (1, "restricted"), (2, "restricted"), (2, "wrong")):
        assert ("image_perplexity", "ra-cm3", "image", "", k, memory) in found
        assert ("caption_perplexity", "ra-cm3", "caption", "", k, memory) in found
    assert ("image_perplexity", "vanilla", "image", "", 0, "") in found
    assert not [key for key in found if key[:2] == ("image_perplexity", "vanilla") and key[4]]
    ratio = found["perplexity_ratio", "ra-cm3", "image", "", 2, "restricted"]
    expected = (
        found["image_perplexity", "ra-cm3", "image", "", 2, "restricted"]["value"]
        / found["image_perplexity", "vanilla", "image", "", 0, ""]["value"]
    )
    assert ratio["value"] == pytest.approx(expected)
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    difference = found["nll_difference", "ra-cm3", "image", "", 2, "restricted"]
    assert difference["value"] == pytest.approx(np.log(ratio["value"]))
    for metric in ("token_accuracy", "psnr", "clip_score"):
        for model, k, memory in (
            ("ra-cm3", 2, "restricted"),
            ("vanilla", 0, ""),
            ("copy the top document", 1, "restricted"),
        ):
            assert (metric, model, "image", "", k, memory) in found
    assert ("cider", "copy the top document", "caption", "", 1, "restricted") in found
    assert ("psnr", "image tokenizer", "image", "", 0, "") in found
    assert ("token_accuracy_ratio", "ra-cm3", "image", "", 2, "restricted") in found
    for of in ("codes", "features"):
        for model in ("ra-cm3", "original images"):
            rate = found[f"copy_rate_{of}", model, "image", "", 2, "restricted"]
            mean = found[f"context_agreement_{of}", model, "image", "", 2, "restricted"]
            assert rate["n"] == mean["n"] == 9
            assert 0 <= rate["value"] <= 1
            assert rate["value"] <= mean["value"] / (0.9 if of == "codes" else 0.95) + 1e-6
        assert not [key for key in found if key[:2] == (f"copy_rate_{of}", "vanilla")]
    for task in ("image", "caption"):  # by construction both contexts are of the concept
        assert found["recall_at_1", "retriever", task, "", 2, "restricted"]["value"] == 1.0
    for model in ("ra-cm3", "vanilla"):
        assert found["training_flops", model, "", "", 0, ""]["value"] > 0
    pixels, codes = SIZE * SIZE, len(_evaluation(world, "image_tokens")[0])
    for model, k, memory in (
        ("ra-cm3", 2, "restricted"),
        ("ra-cm3", 2, "wrong"),
        ("vanilla", 0, ""),
    ):
        bits = found["bits_per_pixel", model, "image", "", k, memory]["value"]
        perplexity = found["image_perplexity", model, "image", "", k, memory]["value"]
        assert bits == pytest.approx(np.log2(perplexity) * codes / pixels)
        bits = found["bits_per_byte", model, "caption", "", k, memory]["value"]
        perplexity = found["caption_perplexity", model, "caption", "", k, memory]["value"]
        assert bits == pytest.approx(np.log2(perplexity) * _tokens_per_byte(world))
    cider = {
        model: found["cider", model, "caption", "", k, memory]["value"]
        for model, k, memory in (
            ("ra-cm3", 2, "restricted"),
            ("vanilla", 0, ""),
            ("copy the top document", 1, "restricted"),
        )
    }
    ours = "ra-cm3", "caption", "", 2, "restricted"
    gain = found["cider_gain", *ours]
    assert gain["value"] == pytest.approx(cider["ra-cm3"] - cider["vanilla"])
    over = found["cider_gain_over_copy", *ours]
    assert over["value"] == pytest.approx(cider["ra-cm3"] - cider["copy the top document"])
    assert {row["better"] for row in rows if row["metric"].startswith("cider")} == {"higher"}
    assert {row["better"] for row in rows if row["metric"].startswith("bits")} == {"lower"}


def _evaluation(world, column):
    shards = world["examples"]["evaluation"].tables("examples")
    return Reader(world["store"]).tables(shards).column(column).to_pylist()


def _tokens_per_byte(world):
    """Of the captions as they were measured: cut to 12 tokens."""
    text = load_text_tokenizer(Reader(world["store"]).files(Selection.of(world["text"])))
    cut = [ids[:12] for ids in _evaluation(world, "text_tokens")]
    return sum(map(len, cut)) / sum(len(text.decode(ids).encode()) for ids in cut)


def test_weights_of_inception_are_known_by_their_digest():
    digest = "0" * 64
    one, other = (
        score_generations.Config.model_validate({"inception": {"path": path, "sha256": digest}})
        for path in ("/here/weights.pth", "/there/weights.pth")
    )
    assert one.canonical() == other.canonical()
    assert one.canonical()["inception"] == {"sha256": digest}
    assert score_generations.Config.model_validate(one.model_dump()) == one
    assert score_generations.Config().canonical()["inception"] is None


# --- size, start, switches ----------------------------------------------------------------------


def _trained(world, changes, *, start=None, **inputs):
    """One generator of few steps, with some of the config and of the inputs changed."""
    values = deep_merge(_config(2, steps=2).model_dump(), changes)
    given = {
        "train": world["examples"]["train"],
        "validation": world["examples"]["validation"],
        "text_tokenizer": world["text"],
        "image_tokenizer": world["images"],
    }
    given |= inputs | ({} if start is None else {"start": start})
    config = train_generator.Config.model_validate(values)
    return world["publish"](train_generator.TrainGenerator(), config, given, "train_generator")


def _weights(world, manifest):
    loaded = load_generator(Reader(world["store"]).files(Selection.of(manifest)))
    return loaded.model, loaded.model.state_dict()


def test_a_size_is_a_shape_and_what_is_given_wins(world):
    none = dict.fromkeys(("layers", "width", "heads", "init_std"))
    made = _trained(world, {"size": "tiny", **none, "positions": "rope", "layers": 1})
    shape = _weights(world, made)[0].config
    assert (shape.layers, shape.width, shape.heads) == (1, 96, 3)
    assert (shape.activation, shape.init_std, shape.max_length) == ("relu", 0.1, 512)
    assert shape.num_slots == 3


def test_a_generator_starts_from_the_weights_of_another(world, generators):
    """With no learning to speak of, they are those weights, apart from slots that are new."""
    start = generators["vanilla"]
    fit = {"learning_rate": 1e-12, "weight_decay": 0.0}
    made = _trained(world, {"fit": fit}, start=start)
    (old, before), (new, after) = _weights(world, start), _weights(world, made)
    assert (old.config.num_slots, new.config.num_slots) == (1, 3)
    for name, value in before.items():
        other = after[name][:1] if name == "slots.weight" else after[name]
        torch.testing.assert_close(other, value, atol=1e-6, rtol=0)
    fresh = _weights(world, _trained(world, {"fit": fit}))[1]
    assert not torch.allclose(fresh["tokens.weight"], after["tokens.weight"], atol=1e-2)
    assert [one.artifact_id for one in made.inputs if one.name == "start"] == [start.artifact_id]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 48}, r"they differ in width \(48 here, 24 there\), ffn_width .*; give both"),
        ({"positions": "rope"}, r"they differ in positions \(rope here, document there\)"),
        ({"num_sentinels": 20}, "they differ in vocabulary"),
        ({"stream": {"max_text_tokens": 13}}, r"max_text_tokens differ \(13, 12\)"),
    ],
)
def test_a_start_of_another_shape_is_refused(world, generators, changes, said):
    start = generators["vanilla"]
    with pytest.raises(UsageError, match=said) as caught:
        _trained(world, changes, start=start)
    assert f"cannot start from generator {start.artifact_id[:12]}: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["text_tokenizer", "image_tokenizer"])
def test_a_start_of_another_tokenizer_is_refused_by_both_ids(world, generators, name):
    captions = [f"other words {n}" for n in range(40)]
    other = {
        "text_tokenizer": lambda folder: _write_text(
            folder, TextTokenizer.train(captions, vocab_size=280)
        ),
        "image_tokenizer": lambda folder: _write_vqgan(
            folder, _tokenizer([dict(r, pixels=255 - r["pixels"]) for r in _documents()])
        ),
    }[name]
    made = world["publish"](Given(name, other), StageConfig(), {}, f"another {name}")
    old = {"text_tokenizer": world["text"], "image_tokenizer": world["images"]}[name]
    if made.artifact_id == old.artifact_id:  # what Given makes is no part of its id
        made = replace(made, shards=tuple(replace(s, row_digest="other") for s in made.shards))
    with pytest.raises(UsageError, match=f"trained with {name} {old.artifact_id[:12]}, this one"):
        _trained(world, {}, start=generators["vanilla"], **{name: made})


def test_recomputed_activations_and_packed_rows_train_alike(world):
    """The losses agree to rounding; the batches shown are the same."""
    stream = {"k_per_batch": False}
    plain = _trained(world, {"stream": stream})
    packed = stream | {"pack_length": 300}
    switched = _trained(world, {"stream": packed, "checkpoint_activations": True})
    reader = Reader(world["store"])
    shown = [
        reader.tables(made.tables("training_batches")).to_pylist() for made in (plain, switched)
    ]
    assert shown[0] == shown[1]
    logs = [
        {
            (row["step"], row["split"], row["metric"]): row["value"]
            for row in reader.tables(made.tables("training_log")).to_pylist()
            if row["metric"].startswith(("loss", "main", "context", "image", "caption"))
        }
        for made in (plain, switched)
    ]
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
    assert len(logs[0]) > 8
