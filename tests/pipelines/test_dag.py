from __future__ import annotations

from pathlib import Path

from flows.recipes import RECIPES
from flows.recipes_emoji import smoke
from pipelines.config import deep_merge, validated
from pipelines.dag import dag_of
from pipelines.fetch.policy import FetchSettings
from pipelines.plan import plan_of
from pipelines.runtime.ledger import as_selection
from pipelines.runtime.store import LocalStore
from pipelines.step import Dag
from storage_schemas.manifest import Manifest

FLOWS = ["ingest", "build_memory", "retrain", "evaluate"]


def dag(**changes: object) -> Dag:
    run = validated(deep_merge(smoke().model_dump(), changes), name="test")
    return dag_of(run, as_selection([]), FetchSettings())


def test_every_step_stands_after_what_it_needs() -> None:
    seen: set[str] = set()
    for step in dag().steps:
        assert set(step.needs) <= seen, step.label
        seen.add(step.label)


def test_a_flow_needs_nothing_of_a_later_one() -> None:
    steps = {step.label: step for step in dag().steps}
    for step in steps.values():
        for need in step.needs:
            assert FLOWS.index(steps[need].flow) <= FLOWS.index(step.flow), (need, step.label)


def test_references_are_told_apart() -> None:
    for make in RECIPES.values():
        steps = dag_of(make(), as_selection([]), FetchSettings()).steps
        refs = [step.ref for step in steps]
        assert len(set(refs)) == len(refs)
        assert {"documents", "memory.restricted", "generator.ra", "scores", "report"} <= set(refs)


def test_training_never_reads_the_extended_memory() -> None:
    steps = {step.label: step for step in dag().steps}
    waiting, seen = ["train_generator[ra]"], set[str]()
    while waiting:
        label = waiting.pop()
        seen.add(label)
        waiting += steps[label].needs
    assert "build_memory[restricted]" in seen
    assert "build_memory[extended]" not in seen


def test_a_public_encoder_takes_the_place_of_ours() -> None:
    public = dag(encoder=False, embed={"pretrained": {"model": "ViT-B-32"}})
    labels = {step.label for step in public.steps}
    assert "train_encoder" not in labels
    assert "train_scorer" in labels


def test_a_run_that_draws_nothing_fits_no_scorer() -> None:
    drawn, silent = dag(), dag(generate={"tasks": []})
    left_out = {step.label for step in drawn.steps} - {step.label for step in silent.steps}
    assert left_out == {"train_scorer"} | {
        step.label for step in drawn.steps if step.kind == "generations"
    }


def test_the_memorys_codes_are_read_where_they_demonstrate() -> None:
    def needs(**few_shot: object) -> set[str]:
        steps = dag(score={"few_shot": few_shot}).steps
        return set(next(step.needs for step in steps if step.kind == "scores"))

    assert needs(trials=8, demonstrations="others") - needs(trials=8) == {"tokenize_images"}
    assert needs(trials=0, demonstrations="others") == needs(trials=8)


def test_a_plan_on_an_empty_store_lists_all_and_writes_nothing(tmp_path: Path) -> None:
    steps = dag()
    store = LocalStore(tmp_path)
    planned = plan_of(steps, store, sources_known=False)
    assert [p.label for p in planned] == [step.label for step in steps.steps]
    assert {p.state for p in planned} == {"pending"}
    assert list(tmp_path.iterdir()) == []


def test_clip_ranks_with_the_retrievers_encoder() -> None:
    """Never with the scorer; where nothing is ranked, nothing more is read."""
    public = {"model": "ViT-B-32", "pretrained": "laion2b"}
    ranked = {"generate": {"candidates": {"image": {"count": 4}}}}
    needs = {
        name: next(s.needs for s in steps.steps if s.label == "generate[ra, extended]")
        for name, steps in {
            "plain": dag(),
            "ours": dag(**ranked),
            "public": dag(**ranked, encoder=False, embed={"pretrained": public}),
            "likelihood": dag(
                generate={"candidates": {"image": {"count": 4, "rank": "likelihood"}}}
            ),
        }.items()
    }
    assert set(needs["ours"]) - set(needs["plain"]) == {"train_encoder"}
    assert needs["plain"] == needs["public"] == needs["likelihood"]


def test_a_memory_has_its_own_share_or_that_of_all() -> None:
    memories = {"half": {"share": 0.5}, "whole": {"share": 1.0}}
    steps = {step.label: step for step in dag(memories=memories, memory={"share": 0.25}).steps}
    embeddings = Manifest(
        kind="embeddings", schema_version=1, artifact_id="a", stage="s", stage_version=1,
        config={}, inputs=(), shards=(), rows_in=0, rows_out=0, dropped={}, counts={}, facts={},
        environment="", run_id="", created_at="", seconds=0.0, shards_executed=0,
    )  # fmt: skip
    shares = {
        name: steps[f"build_memory[{name}]"].make({"embed_documents": embeddings}).config.share
        for name in ("restricted", "extended", "half", "whole")
    }
    assert shares == {"restricted": 0.25, "extended": 0.25, "half": 0.5, "whole": 1.0}
    assert "retrieve_contexts[evaluation, half]" in steps


def test_a_generator_that_is_started_from_comes_first() -> None:
    generators = {"ra": {"start_from": "vanilla"}, "third": {"start_from": "ra"}}
    base = smoke().model_dump()
    base["generators"]["third"] = base["generators"]["ra"]
    run = validated(deep_merge(base, {"generators": generators}), name="test")
    steps = dag_of(run, as_selection([]), FetchSettings()).steps
    trained = [step for step in steps if step.kind == "generator"]
    assert [step.label for step in trained] == [
        "train_generator[vanilla]",
        "train_generator[ra]",
        "train_generator[third]",
    ]
    assert [step.needs[4:] for step in trained] == [
        (),
        ("train_generator[vanilla]",),
        ("train_generator[ra]",),
    ]
    seen: set[str] = set()
    for step in steps:
        assert set(step.needs) <= seen, step.label
        seen.add(step.label)
