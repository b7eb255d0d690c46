from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flows.studies import smoke_study
from pipelines.config import deep_merge
from pipelines.dag import dag_of
from pipelines.errors import UsageError
from pipelines.fetch.policy import FetchSettings
from pipelines.runtime.ledger import as_selection
from pipelines.runtime.store import LocalStore
from pipelines.step import Dag
from pipelines.study import MAIN, Study, Variant, plan_study, united


def dag(study: Study, variant: str) -> Dag:
    return dag_of(study.run(variant, study.seeds[0]), as_selection([]), FetchSettings())


def with_variant(changes: dict[str, object]) -> Study:
    base = smoke_study()
    one = Variant(title="changed", part="ablation", changes=changes)
    return Study(name="test", recipe=base.recipe, seeds=(0, 1), variants={"changed": one})


def steps_of_variant(changes: dict[str, object]) -> set[str]:
    """Labels of the steps that a variant adds."""
    study = with_variant(changes)
    made = united({name: dag(study, name) for name in study.names})
    return {step.label for step in made.dag.steps} - {s.label for s in dag(study, MAIN).steps}


def test_main_alone_is_its_own_dag() -> None:
    study = smoke_study()
    own = dag(study, MAIN)
    made = united({MAIN: own})
    assert made.dag == own
    assert made.of(MAIN) == own.steps


def test_what_is_the_same_stands_once() -> None:
    study = smoke_study()
    made = united({name: dag(study, name) for name in study.names})
    labels = [step.label for step in made.dag.steps]
    assert len(set(labels)) == len(labels)
    assert labels.count("download_images") == 1
    assert not any("download_images" in label for label in labels if "/" in label)


def test_every_step_stands_after_what_it_needs() -> None:
    study = smoke_study()
    made = united({name: dag(study, name) for name in study.names})
    seen: set[str] = set()
    for step in made.dag.steps:
        assert set(step.needs) <= seen, step.label
        seen.add(step.label)


def test_a_variant_of_one_generator_trains_and_measures_that_one() -> None:
    added = steps_of_variant({"generators": {"ra": {"stream": {"alpha": 0.0}}}})
    assert added == {
        "changed/train_generator[ra]",
        "changed/generate[ra, restricted]",
        "changed/generate[ra, extended]",
        "changed/score_generations",
    }


def test_a_variant_of_the_retrieval_leaves_the_models_alone() -> None:
    added = steps_of_variant({"retrieve": {"selection": {"max_contexts": 1}}})
    assert "changed/retrieve_contexts[train]" in added
    assert "changed/train_generator[ra]" in added
    assert not [label for label in added if "encoder" in label or "tokenizer" in label]
    assert "changed/build_memory[restricted]" not in added


def test_another_memory_is_another_memory() -> None:
    added = steps_of_variant({"memories": {"restricted": {"share": 0.5}}})
    assert "changed/build_memory[restricted]" in added
    assert "changed/build_memory[extended]" not in added


def test_a_variant_that_changes_nothing_adds_nothing() -> None:
    assert steps_of_variant({}) == set()


def test_labels_lead_from_a_variant_to_its_steps() -> None:
    study = smoke_study()
    made = united({name: dag(study, name) for name in study.names})
    names = made.labels["alpha-0"]
    assert names["train_image_tokenizer"] == "train_image_tokenizer"
    assert names["train_generator[ra]"] == "alpha-0/train_generator[ra]"
    assert "write_report" not in names
    by_label = {step.label: step for step in made.dag.steps}
    assert by_label["alpha-0/generate[ra, restricted]"].needs[0] == "alpha-0/train_generator[ra]"


def test_a_variant_alone_is_what_leads_to_its_scores() -> None:
    study = smoke_study()
    made = united({name: dag(study, name) for name in study.names})
    labels = [step.label for step in made.of("alpha-0")]
    assert "alpha-0/score_generations" in labels
    assert "train_encoder" in labels
    assert not {"score_generations", "write_report", "train_generator[ra]"} & set(labels)
    needed = {need for step in made.of("alpha-0") for need in step.needs}
    assert needed <= set(labels)


def test_a_recipe_is_told_by_what_leads_to_the_scores_and_by_nothing_else() -> None:
    study = with_variant({"generators": {"ra": {"stream": {"alpha": 0.0}}}})
    both = united({name: dag(study, name) for name in study.names})
    alone = united({MAIN: dag(study, MAIN)})
    assert both.recipe(MAIN) == alone.recipe(MAIN)
    assert both.recipe("changed") != both.recipe(MAIN)
    same = with_variant({})
    nothing = united({name: dag(same, name) for name in same.names})
    assert nothing.recipe("changed") == nothing.recipe(MAIN) == both.recipe(MAIN)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": {"validation_pairs": 9}},
        {"score": {"resamples": 7}},
        {"memories": {"restricted": {"share": 0.5}}},
        {"generators": {"vanilla": {"stream": {"batch_size": 3}}}},
    ],
)
def test_another_setting_anywhere_is_another_recipe(changes: dict[str, object]) -> None:
    study = with_variant(changes)
    made = united({name: dag(study, name) for name in study.names})
    assert made.recipe("changed") != made.recipe(MAIN)


def test_another_split_is_another_recipe() -> None:
    study = with_variant({})
    first, second = (
        united({MAIN: dag_of(study.run(MAIN, seed), as_selection([]), FetchSettings())})
        for seed in study.seeds
    )
    assert first.recipe(MAIN) != second.recipe(MAIN)


def test_a_plan_shows_what_is_asked(tmp_path: Path) -> None:
    study = replace(smoke_study(), asked=("alpha-0",))
    plan = plan_study(study, 0, LocalStore(tmp_path / "store"), tmp_path / "cache")
    labels = {step.label for step in plan.steps}
    assert "alpha-0/score_generations" in labels
    assert not [one for one in labels if one.startswith("budget-half/") or one == "write_report"]
    assert set(plan.expected) <= labels
    assert set(plan.recipes) == set(study.names)


def test_splits_differ_in_their_corpus_and_nothing_else_of_it() -> None:
    study = with_variant({})
    first, second = (study.run(MAIN, seed) for seed in study.seeds)
    assert first.namespace != second.namespace
    assert first.corpus is not None
    assert second.corpus is not None
    assert (first.corpus.seed, second.corpus.seed) == (0, 1)
    assert {one.seed for one in second.generators.values()} == {1}
    same = deep_merge(first.model_dump(), {"namespace": second.namespace, "corpus": {"seed": 1}})
    assert first.model_validate(same).encoder == second.encoder


def test_a_variant_may_not_change_the_sources() -> None:
    study = with_variant({"corpus": {"familiar": 3}})
    with pytest.raises(UsageError, match="corpus may not differ"):
        study.run("changed", 0)


def test_an_unknown_variant_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="there is no variant nothing"):
        smoke_study().run("nothing", 0)


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_come_once_each(seeds: tuple[int, ...]) -> None:
    base = smoke_study()
    with pytest.raises(UsageError, match="one seed or more, each once"):
        Study(name="test", recipe=base.recipe, seeds=seeds, variants={})


def test_a_variant_is_on_the_splits_that_it_names() -> None:
    base = with_variant({})
    one = replace(base.variants["changed"], seeds=(1,))
    study = replace(base, variants={"changed": one})
    assert (study.of_split(0), study.of_split(1)) == ((MAIN,), (MAIN, "changed"))
    with pytest.raises(UsageError, match="variant changed: there is no split 7; there are 0, 1"):
        replace(base, variants={"changed": replace(one, seeds=(1, 7))})


def test_main_is_on_the_splits_that_it_names() -> None:
    study = replace(smoke_study(), seeds=(0, 1), main_seeds=(0,))
    assert study.asked_of(0) == study.names
    assert study.asked_of(1) == study.names[1:]
    assert study.of_split(1) == study.names, "steps that variants share are called as main's are"
    with pytest.raises(UsageError, match="variant main: there is no split 2"):
        replace(study, main_seeds=(0, 2))


def test_a_plan_on_an_empty_store_has_no_scores_and_writes_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    plan = plan_study(smoke_study(), 0, store, tmp_path / "cache")
    assert plan.scores == {}
    assert {step.state for step in plan.steps} == {"pending"}
    assert not list(tmp_path.rglob("*.json"))
