from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.recipes import RECIPES
from flows.recipes_emoji import emoji, smoke
from pipelines.config import RunConfig, deep_merge, validated
from pipelines.cost import estimates, generator_cost, step_size
from pipelines.dag import dag_of
from pipelines.fetch.policy import FetchSettings
from pipelines.plan import plan_of
from pipelines.runtime.catalog import move_ref, publish
from pipelines.runtime.ledger import as_selection
from pipelines.runtime.store import LocalStore
from pipelines.step import Dag
from racm3.document import DocumentTokens
from racm3.sequence.layout import Layout
from racm3.training.examples import Example, QueryContexts
from racm3.training.generator import GeneratorTask
from racm3.training.stream import StreamConfig, draw_batch
from racm3.vocabulary import Vocabulary
from storage_schemas.manifest import Manifest

IMAGE, TEXT = 9, 6
LONGEST = DocumentTokens(text=(1,) * TEXT, image=(2,) * IMAGE)
EXAMPLES = [
    Example(
        example_id=f"e{n}",
        document_id=f"d{n}",
        main=LONGEST,
        queries=tuple(
            QueryContexts(query=q, draw=0, document_ids=("x", "y"), contexts=(LONGEST, LONGEST))
            for q in ("text", "image")
        ),
    )
    for n in range(8)
]
LAYOUT = Layout(vocabulary=Vocabulary(20, 16, 16), image_tokens=IMAGE, max_text_tokens=TEXT)


def run_of(**changes: Any) -> RunConfig:
    return validated(deep_merge(smoke().model_dump(), changes), name="test")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"k_per_batch": False},
        {"k_per_batch": False, "pack_length": 4096},
        {"max_k": 0},
        {"k0_fraction": 0.5, "k_per_batch": False},
        {"k0_fraction": 0.5, "alpha": 0.0},
        {"max_length": 40},
    ],
)
def test_the_average_step_is_what_steps_come_to(changes: dict[str, Any]) -> None:
    """With captions at their longest and nothing masked, over many steps."""
    steps = 600
    config = StreamConfig(
        **{"batch_size": 4, "objective": "causal", "max_text_tokens": TEXT, **changes}
    )
    expected = step_size(config, image_tokens=IMAGE, workers=1)
    tokens = squares = predictions = largest = 0
    for step in range(steps):
        batch, _ = draw_batch(
            EXAMPLES, layout=LAYOUT, config=config, seed=0, step=step, total_steps=steps
        )
        rows, length = batch.labels.shape
        tokens += rows * length
        squares += rows * length**2 if batch.samples is None else batch.samples.squares
        predictions += batch.num_tokens
        largest = max(largest, rows * length)
    assert tokens / steps == pytest.approx(expected.tokens, rel=0.04)
    assert squares / steps == pytest.approx(expected.squares, rel=0.06)
    assert predictions / steps == pytest.approx(expected.predictions, rel=0.04)
    assert largest == expected.largest


def test_flops_are_those_that_training_counts() -> None:
    """No contexts, nothing masked: the plan's step is the step that is taken."""
    import torch

    from racm3.generator.transformer import Generator

    steps = {"fit": {"steps": 10}, "stream": {"spans": {"none": 1.0}}}
    none = dict.fromkeys(("uniform_spans", "whole_caption", "whole_image", "image_span"), 0.0)
    changes = deep_merge(steps, {"stream": {"spans": none}})
    run = run_of(generators={"vanilla": changes})
    config = run.generators["vanilla"]
    cost = generator_cost(run, "vanilla")
    assert cost is not None
    vocabulary = Vocabulary(text_size=512, image_size=256, num_sentinels=16)
    layout = Layout(vocabulary=vocabulary, image_tokens=64, max_text_tokens=16)
    document = DocumentTokens(text=(1,) * 16, image=(2,) * 64)
    examples = [Example(example_id="e", document_id="d", main=document, queries=(), group="flags")]
    shape = config.shape(num_places=layout.places.size)
    model = Generator(shape, vocabulary, generator=torch.Generator())
    task = GeneratorTask(model, examples, layout=layout, config=config.stream, seed=0)
    _, numbers = task.loss(0, rank=0, world_size=1)
    assert cost.vocabulary == vocabulary.size
    assert cost.tokens == 10 * float(numbers["tokens"])  # type: ignore[arg-type]
    assert cost.flops == 10 * task.step_flops(0)
    assert cost.parameters == sum(p.numel() for p in model.parameters())


def test_a_budget_of_flops_says_how_many_steps_it_pays_for() -> None:
    run = emoji()
    read, plain = generator_cost(run, "ra"), generator_cost(run, "vanilla")
    assert read is not None
    assert plain is not None
    assert read.flops == pytest.approx(6e12)
    assert plain.flops == pytest.approx(6e12)
    assert 0.5 * 5800 < read.steps < 1.5 * 5800
    shorter = validated(
        deep_merge(run.model_dump(), {"generators": {"ra": {"fit": {"steps": 10}}}}), name="x"
    )
    ten = generator_cost(shorter, "ra")
    assert ten is not None
    assert ten.steps == 10
    assert ten.flops == pytest.approx(6e12 * 10 / read.steps)


def test_memory_is_that_of_one_worker() -> None:
    one, two = (
        generator_cost(run_of(generators={"ra": {"workers": workers}}), "ra") for workers in (1, 2)
    )
    assert one is not None
    assert two is not None
    assert one.memory.weights == two.memory.weights
    assert one.memory.activations == 2 * two.memory.activations
    assert one.flops == two.flops
    assert one.worker_bytes == one.memory.total(checkpointing=False)


def test_accumulating_and_sharding_need_less_memory() -> None:
    def cost(**changes: Any) -> Any:
        found = generator_cost(run_of(generators={"ra": changes}), "ra")
        assert found is not None
        return found

    plain, parts = cost(), cost(fit={"accumulate": 2})
    assert parts.memory.activations == plain.memory.activations / 2
    assert parts.memory.gradients == plain.memory.gradients
    alone, shared = cost(workers=4), cost(workers=4, sharding="fsdp2")
    assert shared.memory.optimizer == -(-shared.parameters // 4) * 8
    assert shared.memory.gradients * 4 == pytest.approx(alone.memory.gradients, abs=16)
    assert shared.flops == alone.flops


def test_a_tokenizer_whose_shape_is_in_its_file_is_not_guessed() -> None:
    changes = {"normalize": {"image_size": 256}}
    named = {"file": "x", "preset": "taming-gumbel-f8-8192"}
    run = run_of(image_tokenizer={"pretrained": named}, **changes)
    cost = generator_cost(run, "ra")
    assert cost is not None
    assert cost.vocabulary == 512 + 8192 + 16 + 4
    assert cost.image_tokens == 1024
    unnamed = run_of(image_tokenizer={"pretrained": {"file": "x", "image_size": 256}}, **changes)
    assert generator_cost(unnamed, "ra") is None


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("laion")])
def test_laion_recipes_are_counted_without_files(name: str) -> None:
    run = RECIPES[name]()
    for generator, most in (("ra", 80 * 2**30), ("vanilla", 80 * 2**30)):
        cost = generator_cost(run, generator)
        assert cost is not None
        assert (cost.vocabulary, cost.image_tokens) == (65_536, 1024)
        assert cost.worker_bytes < most, "more than a GPU of 80 GiB has"
        assert cost.flops == pytest.approx(run.generators[generator].fit.flops_budget)


# --- hours ------------------------------------------------------------------------------------


def made(kind: str, number: int, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "kind": kind, "schema_version": 1, "artifact_id": f"{number:064x}", "stage": kind,
        "stage_version": 1, "config": {}, "inputs": (), "shards": (), "rows_in": 1, "rows_out": 1,
        "dropped": {}, "counts": {}, "facts": {}, "environment": "", "run_id": "r",
        "created_at": f"2026-01-{number:02d}T00:00:00Z", "seconds": 10.0, "shards_executed": 1,
    }  # fmt: skip
    return Manifest(**values | changes)


def planned(run: RunConfig) -> Dag:
    return dag_of(run, as_selection([]), FetchSettings())


def hours(store: LocalStore, run: RunConfig, **given: float) -> dict[str, Any]:
    dag = planned(run)
    return dict(estimates(plan_of(dag, store, sources_known=False), dag, run, store, **given))


def test_nothing_measured_is_unknown(tmp_path: Path) -> None:
    found = hours(LocalStore(tmp_path), smoke())
    assert {one.seconds for one in found.values()} == {None}
    assert "--flops-per-second" in found["train_generator[ra]"].basis


def test_a_speed_that_is_given_is_that_of_one_worker(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    cost = generator_cost(smoke(), "ra")
    assert cost is not None
    for workers in (1, 2):
        run = run_of(generators={"ra": {"workers": workers}})
        found = hours(store, run, flops_per_second=1e9)["train_generator[ra]"]
        assert found.seconds == pytest.approx(cost.flops / 1e9 / workers)


def test_what_was_measured_is_scaled(tmp_path: Path) -> None:
    """The reference's own generator first, then the newest of the store; other steps as last."""
    store, run = LocalStore(tmp_path), smoke()
    cost = generator_cost(run, "ra")
    assert cost is not None
    slow = made("generator", 1, facts={"training_flops": 1e9}, seconds=10.0)
    fast = made("generator", 2, facts={"training_flops": 9e9, "workers": 3}, seconds=1.0)
    for manifest in (slow, fast):
        publish(store, manifest)
    found = hours(store, run)
    assert found["train_generator[ra]"].seconds == pytest.approx(cost.flops / 3e9)
    move_ref(store, "smoke", "generator.ra", slow)
    documents = made("documents", 3, seconds=77.0)
    publish(store, documents)
    move_ref(store, "smoke", "documents", documents)
    found = hours(store, run)
    assert found["train_generator[ra]"].seconds == pytest.approx(cost.flops / 1e8)
    assert slow.artifact_id[:12] in found["train_generator[ra]"].basis
    assert found["curate_documents"].seconds == 77.0
    assert found["embed_documents"].seconds is None
