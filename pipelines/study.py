"""A study: variants of one recipe, each on several splits, as one DAG.

What variants have in common is one step: the DAG of a split is the union of its variants' DAGs, and
two steps are the same when they and all that they need say the same (`Step.identity`). So an
ablation that changes one generator trains one generator. A study keeps no state of its own: it may
be interrupted anywhere, and what is made is found again by artifact id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.config import RunConfig, deep_merge, validated
from pipelines.corpus import known_sources
from pipelines.cost import Estimate, Past
from pipelines.dag import NO_MEMORY, dag_of
from pipelines.errors import UsageError
from pipelines.fetch.policy import FetchSettings
from pipelines.plan import PlannedStep, plan_of
from pipelines.runtime.catalog import manifests, resolve
from pipelines.runtime.ledger import as_selection
from pipelines.runtime.run import StageCall
from pipelines.runtime.store import Store
from pipelines.step import Dag, Step
from storage_schemas.fingerprint import digest_of
from storage_schemas.manifest import Manifest

__all__ = ["MAIN", "Study", "StudyPlan", "United", "Variant", "plan_study", "united"]

MAIN = "main"
"""The variant that changes nothing."""
SCORES = "score_generations"
"""The step that a variant is run for."""
_OWN_OF_MAIN = ("write_report",)
"""Steps that only the main variant makes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A recipe with some keys changed."""

    title: str
    """What is different, in a few words."""
    part: Literal["curve", "protocol", "ablation", "few-shot", "sheets"]
    """What it is for: a point of the compute curve, another protocol of fairness, a line of the
    ablation table, another way of few-shot classification, sheets of what is drawn."""
    changes: Mapping[str, Any]
    """Laid over the recipe. `generators`, when given, names all that the variant trains: the
    recipe's others are left out."""
    seeds: tuple[int, ...] | None = None
    """Splits of the study that have it; None: all."""
    k: int = 2
    """Contexts at which its line of the ablation table is measured."""
    memory: str = "restricted"
    """Memory that its familiar documents ask there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Variants of a recipe by name, and the seeds of the splits."""

    name: str
    recipe: Mapping[str, Any]
    """The recipe's values; every variant is laid over them."""
    seeds: tuple[int, ...]
    """Each is a fresh split of the corpus and fresh weights."""
    variants: Mapping[str, Variant]
    """Without `main`."""
    base: str = MAIN
    """Variant that the ablations stand beside."""
    main_seeds: tuple[int, ...] | None = None
    """Splits that main is run on; None: all of them."""
    asked: tuple[str, ...] | None = None
    """Variants that are run; None: all of them."""
    asked_seeds: tuple[int, ...] | None = None
    """Splits that are run; None: all of them."""

    def __post_init__(self) -> None:
        """Refuses what cannot be told apart.

        Raises:
            UsageError: a variant is called main or asks for a split that the study has not, as
                main may not either, or there is no seed, or one comes twice.
        """
        if MAIN in self.variants:
            raise UsageError(f"study {self.name}: no variant may be called {MAIN}; rename it")
        if self.base not in self.names:
            raise UsageError(f"study {self.name}: base {self.base} is no variant of it")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"study {self.name}: give one seed or more, each once")
        on = {MAIN: self.main_seeds} | {name: one.seeds for name, one in self.variants.items()}
        for name, seeds in on.items():
            if unknown := sorted(set(seeds or ()) - set(self.seeds)):
                raise UsageError(
                    f"study {self.name}, variant {name}: there is no split {unknown[0]}; there are "
                    f"{', '.join(map(str, self.seeds))}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """All variants, main first."""
        return (MAIN, *self.variants)

    def of_split(self, seed: int) -> tuple[str, ...]:
        """Variants that a split has, main first: it names what they share, run there or not."""
        kept = (n for n, one in self.variants.items() if one.seeds is None or seed in one.seeds)
        return (MAIN, *kept)

    @property
    def splits(self) -> tuple[int, ...]:
        """Seeds of the splits that are run."""
        return self.seeds if self.asked_seeds is None else self.asked_seeds

    def asked_of(self, seed: int) -> tuple[str, ...]:
        """Variants of a split that are run."""
        no_main = self.main_seeds is not None and seed not in self.main_seeds
        own = self.of_split(seed)[no_main:]
        return tuple(n for n in own if self.asked is None or n in self.asked)

    def namespace(self, seed: int) -> str:
        """Of the ledger and the references of a split."""
        return f"{self.name}-{seed}"

    def run(self, variant: str, seed: int) -> RunConfig:
        """The run of a variant on a split.

        Raises:
            UsageError: there is no such variant, or it does not fit the recipe.
        """
        if variant not in self.names:
            raise UsageError(
                f"study {self.name}: there is no variant {variant}; there are "
                f"{', '.join(self.names)}"
            )
        changes = {} if variant == MAIN else dict(self.variants[variant].changes)
        if kept := changes.get("generators"):
            left_out = set(self.recipe["generators"]) - set(kept)
            changes["generators"] = kept | dict.fromkeys(left_out, False)
        values = deep_merge(dict(self.recipe), changes)
        values["namespace"] = self.namespace(seed)
        if values.get("corpus"):
            values["corpus"] = dict(values["corpus"]) | {"seed": seed}
        values["generators"] = {
            name: one and dict(one) | {"seed": seed} for name, one in values["generators"].items()
        }
        run = validated(values, name=f"study {self.name}, variant {variant}")
        if variant != MAIN:
            self._same_sources(run, self.run(MAIN, seed), variant)
        return run

    def _same_sources(self, run: RunConfig, main: RunConfig, variant: str) -> None:
        for key in ("corpus", "sources"):
            if getattr(run, key) != getattr(main, key):
                raise UsageError(
                    f"study {self.name}, variant {variant}: {key} may not differ from the recipe's;"
                    " make it a study of its own"
                )


@dataclass(frozen=True, kw_only=True)
class United:
    """The DAG of a split."""

    dag: Dag
    labels: Mapping[str, Mapping[str, str]]
    """Variant -> label of a step in its own DAG -> label in this one."""

    def of(self, *variants: str) -> tuple[Step, ...]:
        """The steps of some variants, in order."""
        own = {label for name in variants for label in self.labels[name].values()}
        return tuple(step for step in self.dag.steps if step.label in own)

    def recipe(self, variant: str) -> str:
        """Digest of the steps that lead to a variant's scores, whatever the sources.

        Where two stores have scores of the same recipe they have the same experiment, whichever
        machine made it.
        """
        last = self.labels[variant][SCORES]
        before = {step.label: step.needs for step in self.dag.steps}
        needed, open_ = {last}, [last]
        while open_:
            fresh = set(before[open_.pop()]) - needed
            needed |= fresh
            open_ += fresh
        return digest_of(sorted(s.identity for s in self.dag.steps if s.label in needed))


def united(dags: Mapping[str, Dag]) -> United:
    """One DAG of all variants of a split; steps that are the same stand in it once.

    Args:
        dags: by variant, `main` among them, over the same sources. The steps of main keep their
            labels; a step that is only a variant's is called `variant/label`.
    """
    steps: dict[str, Step] = {}
    labels: dict[str, dict[str, str]] = {}
    for variant in (MAIN, *(name for name in dags if name != MAIN)):
        own: dict[str, str] = {}
        keys: dict[str, str] = {}
        for step in dags[variant].steps:
            if variant != MAIN and step.label in _OWN_OF_MAIN:
                continue
            key = digest_of([step.identity, [keys[need] for need in step.needs]])
            keys[step.label] = key
            if key not in steps:
                steps[key] = step if variant == MAIN else _renamed(step, variant, own)
            own[step.label] = steps[key].label
        labels[variant] = own
    return United(dag=Dag(steps=tuple(steps.values())), labels=labels)


def _renamed(step: Step, variant: str, names: Mapping[str, str]) -> Step:
    """The step under a name of its own, reading what it needs under theirs."""
    label = f"{variant}/{step.label}"

    def make(made: Mapping[str, Manifest]) -> StageCall:
        return replace(step.make({need: made[names[need]] for need in step.needs}), label=label)

    return replace(step, label=label, needs=tuple(names[n] for n in step.needs), make=make)


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What of a split is there."""

    steps: tuple[PlannedStep, ...]
    """Of the variants that are asked for."""
    expected: Mapping[str, Estimate]
    """How long the steps that are not there would take, by label."""
    recipes: Mapping[str, str]
    """Of each variant, see `United.recipe`."""
    scores: Mapping[str, Manifest]
    """The `scores` artifact of each variant that has been measured."""
    retriever: Mapping[str, Manifest]
    """What main's contexts for training were found with, by stage, as far as it is there."""
    sheets: Mapping[str, Mapping[str, Manifest]]
    """Of each variant that is for sheets and has been drawn: `documents`, and `generations` by
    model, those of the memory for training where there are several."""


def plan_study(
    study: Study, seed: int, store: Store, cache: Path, *, flops_per_second: float | None = None
) -> StudyPlan:
    """Walks the steps of a split and runs none; writes nothing.

    Args:
        study: Whose split it is.
        seed: Of the split.
        store: Where artifacts may be.
        cache: Where the demo corpus may be.
        flops_per_second: Of one worker in training, in place of what was measured.
    """
    runs = {name: study.run(name, seed) for name in study.of_split(seed)}
    known = known_sources(store, runs[MAIN], cache)
    sources = known or as_selection([])
    split = united({name: dag_of(run, sources, FetchSettings()) for name, run in runs.items()})
    steps = plan_of(split.dag, store, sources_known=known is not None)
    of_asked = {step.label for step in split.of(*study.asked_of(seed))}
    made = {step.label: step for step in steps if step.state == "reused"}
    kinds = {step.label: step.kind for step in split.dag.steps}

    def artifact(label: str) -> Manifest | None:
        step = made.get(label)
        return None if step is None else resolve(store, f"{kinds[label]}/{step.artifact_id}")

    measured = {name: artifact(split.labels[name][SCORES]) for name in runs}
    asked = {
        "train_encoder": "train_encoder",
        "embed_documents": "embed_documents",
        "build_memory": f"build_memory[{runs[MAIN].training_memory}]",
        "retrieve_contexts": "retrieve_contexts[train]",
    }
    used = {stage: artifact(label) for stage, label in asked.items()}
    drawn = {
        name: {what: artifact(split.labels[name][own]) for what, own in _drawn(run).items()}
        for name, run in runs.items()
        if name != MAIN and study.variants[name].part == "sheets"
    }
    shown = tuple(step for step in steps if step.label in of_asked)
    return StudyPlan(
        steps=shown,
        expected=_expected(shown, split, runs, store, flops_per_second),
        recipes={name: split.recipe(name) for name in runs},
        scores={name: one for name, one in measured.items() if one is not None},
        retriever={stage: one for stage, one in used.items() if one is not None},
        sheets={
            name: {what: one for what, one in parts.items() if one is not None}
            for name, parts in drawn.items()
            if all(parts.values())
        },
    )


def _drawn(run: RunConfig) -> dict[str, str]:
    """Labels of what sheets are drawn of, in the run's own DAG."""
    models = {
        name: f"generate[{name}, {run.training_memory if one.stream.max_k else NO_MEMORY}]"
        for name, one in run.generators.items()
    }
    return {"documents": "curate_documents"} | models


def _expected(
    steps: Sequence[PlannedStep],
    split: United,
    runs: Mapping[str, RunConfig],
    store: Store,
    flops_per_second: float | None,
) -> dict[str, Estimate]:
    """A step that trains takes its FLOPs, any other what the newest of its kind took."""
    owners = {
        label: (variant, own)
        for variant in reversed(list(split.labels))
        for own, label in split.labels[variant].items()
    }
    kinds = {step.label: step.kind for step in split.dag.steps}
    past, newest = Past(store), dict[str, Manifest]()
    for made in sorted(manifests(store), key=lambda one: one.created_at):
        newest[made.kind] = made
    expected = {}
    for step in steps:
        if step.state != "reused":
            variant, own = owners[step.label]
            last = None if kinds[step.label] == "generator" else newest.get(kinds[step.label])
            expected[step.label] = past.estimate(
                own, runs[variant], last, flops_per_second=flops_per_second
            )
    return expected
