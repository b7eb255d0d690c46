"""The pipeline as data: which stage calls make a run, and what each needs.

A `Step` names its inputs by label and makes its `StageCall` when they are there. Flows run steps
with Prefect, `racm3 plan` walks the same steps and runs none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.config import RunConfig
from pipelines.fetch.policy import FetchSettings
from pipelines.inputs import fit_selection, selected, whole
from pipelines.runtime.reader import Selection
from pipelines.runtime.run import StageCall
from pipelines.runtime.stage import Stage, StageConfig
from pipelines.stages.assemble_examples import AssembleExamples
from pipelines.stages.build_memory import BuildMemory
from pipelines.stages.curate_documents import CurateDocuments
from pipelines.stages.download_images import DownloadImages
from pipelines.stages.embed_documents import EmbedDocuments
from pipelines.stages.generate import Generate
from pipelines.stages.ingest_metadata import IngestMetadata
from pipelines.stages.normalize_images import NormalizeImages
from pipelines.stages.retrieve_contexts import Config as RetrieveContextsConfig
from pipelines.stages.retrieve_contexts import RetrieveContexts
from pipelines.stages.score_generations import ScoreGenerations
from pipelines.stages.tokenize_images import TokenizeImages
from pipelines.stages.train_encoder import TrainEncoder
from pipelines.stages.train_generator import TrainGenerator
from pipelines.stages.train_image_tokenizer import TrainImageTokenizer
from pipelines.stages.train_text_tokenizer import TrainTextTokenizer
from pipelines.stages.write_report import WriteReport
from pipelines.step import Dag, Inputs, Step, step_of
from storage_schemas.fingerprint import digest_of
from storage_schemas.manifest import Manifest

__all__ = ["NO_MEMORY", "dag_of"]

NO_MEMORY = "none"
"""Stands where a memory's name stands, in the label of a generator that reads none."""


def dag_of(config: RunConfig, sources: Selection, fetch: FetchSettings, *, run_id: str = "") -> Dag:
    """All steps of a run, from its sources to its report.

    Args:
        config: The run.
        sources: Its entries of the source ledger.
        fetch: How this machine fetches; not part of any fingerprint.
        run_id: Of this run, for the report; not part of any fingerprint.
    """
    maker = _Maker(config, sources, fetch)
    steps = [*maker.ingest(), *maker.models(), *maker.memories(), *maker.examples()]
    steps += [*maker.generators(), *maker.evaluation()]
    steps.append(_report(config, steps, run_id))
    return Dag(steps=tuple(steps))


class _Maker:
    """Makes the steps of one run."""

    def __init__(self, config: RunConfig, sources: Selection, fetch: FetchSettings) -> None:
        self.config, self.sources, self.fetch = config, sources, fetch

    def ingest(self) -> list[Step]:
        """From links to documents."""
        config = self.config

        def sources(_: Mapping[str, Manifest]) -> Inputs:
            return {"sources": self.sources}

        return [
            step_of("ingest_metadata", IngestMetadata(), config.ingest, (), sources, "ingest"),
            step_of(
                "download_images",
                DownloadImages(self.fetch),
                config.download,
                ("ingest_metadata",),
                whole(rows="ingest_metadata"),
                "ingest",
            ),
            step_of(
                "normalize_images",
                NormalizeImages(),
                config.normalize,
                ("download_images",),
                whole(images="download_images"),
                "ingest",
            ),
            step_of(
                "curate_documents",
                CurateDocuments(),
                config.curate,
                ("ingest_metadata", "download_images", "normalize_images"),
                whole(
                    rows="ingest_metadata",
                    images="download_images",
                    normalized="normalize_images",
                ),
                "ingest",
            ),
        ]

    def models(self) -> list[Step]:
        """What is fitted on the fit sources: encoder, scorer, tokenizers."""
        config, needs = self.config, ("curate_documents",)

        def fit_inputs(made: Mapping[str, Manifest]) -> Inputs:
            documents = made["curate_documents"]
            held_out = Selection.of(documents, role={"validation"})
            return {"documents": fit_selection(self.config, documents), "validation": held_out}

        def text_inputs(made: Mapping[str, Manifest]) -> Inputs:
            return {"documents": fit_selection(self.config, made["curate_documents"])}

        fits: list[tuple[str, Stage[Any], StageConfig, Any]] = [
            ("train_text_tokenizer", TrainTextTokenizer(), config.text_tokenizer, text_inputs),
            (
                "train_image_tokenizer",
                TrainImageTokenizer(),
                config.image_tokenizer,
                fit_inputs,
            ),
        ]
        if config.generate.tasks:
            scorer = ("train_scorer", TrainEncoder("scorer"), config.scorer, fit_inputs)
            fits.append(scorer)
        if config.encoder is not None:
            encoder = ("train_encoder", TrainEncoder("encoder"), config.encoder, fit_inputs)
            fits.insert(1, encoder)
        chosen_by = [config.fit_sources, config.fit_files]
        return [
            step_of(label, stage, one, needs, inputs, "build_memory", chosen_by=chosen_by)
            for label, stage, one, inputs in fits
        ]

    def memories(self) -> list[Step]:
        """Vectors, codes and the indexes."""
        config = self.config
        own = ("train_encoder",) if config.encoder is not None else ()
        encoder = {"encoder": "train_encoder"} if own else {}
        steps = [
            step_of(
                "embed_documents",
                EmbedDocuments(),
                config.embed,
                ("curate_documents", *own),
                whole(documents="curate_documents", **encoder),
                "build_memory",
            ),
            step_of(
                "tokenize_images",
                TokenizeImages(),
                config.tokenize,
                ("curate_documents", "train_image_tokenizer"),
                whole(documents="curate_documents", image_tokenizer="train_image_tokenizer"),
                "build_memory",
            ),
        ]
        for name, memory in config.memories.items():
            share = config.memory.share if memory.share is None else memory.share
            steps.append(
                step_of(
                    f"build_memory[{name}]",
                    BuildMemory(),
                    config.memory.model_copy(update={"share": share}),
                    ("embed_documents",),
                    selected("embeddings", "embed_documents", role=memory.roles),
                    "build_memory",
                    chosen_by=memory.roles,
                )
            )
        return steps

    def examples(self) -> list[Step]:
        """What the trainer and the evaluation read: contexts, then examples."""
        steps = []
        first = self.config.training_memory
        for role in ("train", "validation"):
            steps += self._examples(role, first, {"role": {role}}, "retrain")
        for name, memory in self.config.memories.items():
            sets = self.config.sets if memory.evaluates is None else memory.evaluates
            where = {"role": {"evaluation"}, "set": set(sets)}
            steps += self._examples(f"evaluation, {name}", name, where, "evaluate")
        return steps

    def generators(self) -> list[Step]:
        """Every generator of the recipe, on the same examples; a start comes first."""
        needs = {
            "train": "assemble_examples[train]",
            "validation": "assemble_examples[validation]",
            "image_tokenizer": "train_image_tokenizer",
            "text_tokenizer": "train_text_tokenizer",
        }
        steps = []
        for name in sorted(self.config.generators, key=lambda one: len(self.config.starts(one))):
            config = self.config.generators[name]
            start = config.start_from
            reads = needs | ({"start": f"train_generator[{start}]"} if start is not None else {})
            steps.append(
                step_of(
                    f"train_generator[{name}]",
                    TrainGenerator(),
                    config,
                    tuple(reads.values()),
                    whole(**reads),
                    "retrain",
                )
            )
        return steps

    def evaluation(self) -> list[Step]:
        """Generations of every generator with every memory it reads, and the scores."""
        steps, generations = [], {}
        drawn = self.config.generators if self.config.generate.tasks else {}
        for model, config in drawn.items():
            for memory in self.config.memories if config.stream.max_k else (NO_MEMORY,):
                step = self._generate(model, memory)
                steps.append(step)
                generations[f"generations.{model}.{memory}"] = step.label
        inputs = generations | {
            "documents": "curate_documents",
            "image_tokenizer": "train_image_tokenizer",
            "text_tokenizer": "train_text_tokenizer",
            "train": "assemble_examples[train]",
        }
        inputs |= {"scorer": "train_scorer"} if drawn else {}
        if self.config.score.few_shot.shows_others:
            inputs |= {"image_tokens": "tokenize_images"}
        inputs |= {f"generator.{m}": f"train_generator[{m}]" for m in self.config.generators}
        inputs |= {
            f"examples.{m}": f"assemble_examples[evaluation, {m}]" for m in self.config.memories
        }
        steps.append(
            step_of(
                "score_generations",
                ScoreGenerations(),
                self.config.score,
                tuple(inputs.values()),
                whole(**inputs),
                "evaluate",
            )
        )
        return steps

    def _generate(self, model: str, memory: str) -> Step:
        asked = None if memory == NO_MEMORY else memory
        config = self.config.generate.model_copy(
            update={
                "model": model,
                "memory": asked,
                "k": self.config.generate.k if asked else 0,
                "tasks": self._tasks(model),
            }
        )
        needs = {
            "generator": f"train_generator[{model}]",
            "examples": f"assemble_examples[evaluation, {asked or self.config.training_memory}]",
            "image_tokenizer": "train_image_tokenizer",
            "text_tokenizer": "train_text_tokenizer",
        }
        if config.needs_clip and self.config.encoder is not None:
            needs["encoder"] = "train_encoder"
        elif config.needs_clip:
            config = config.model_copy(update={"pretrained": self.config.embed.pretrained})
        vectors = {"embeddings": "embed_documents"} if config.needs_vectors else {}

        def inputs(made: Mapping[str, Manifest]) -> Inputs:
            asked = {
                name: Selection.of(made[need], role=["evaluation"])
                for name, need in vectors.items()
            }
            return {**whole(**needs)(made), **asked}

        label = f"generate[{model}, {memory}]"
        reads = (*needs.values(), *vectors.values())
        return step_of(label, Generate(), config, reads, inputs, "evaluate")

    def _tasks(self, model: str) -> tuple[str, ...]:
        """What a generator is asked; a causal one was never shown how to fill anything in."""
        causal = self.config.generators[model].stream.objective == "causal"
        asked = self.config.generate.tasks
        return tuple(task for task in asked if task == "image") if causal else asked

    def _retrieval(self, memory: str) -> RetrieveContextsConfig:
        """How a memory answers."""
        ranking = self.config.memories[memory].ranking
        changed = {} if ranking is None else {"ranking": ranking}
        return self.config.retrieve.model_copy(update=changed)

    def _examples(
        self, label: str, memory: str, where: Mapping[str, Iterable[str]], flow: str
    ) -> list[Step]:
        retrieve, store = f"retrieve_contexts[{label}]", f"build_memory[{memory}]"
        roles = set(self.config.memories[memory].roles)

        def contexts_of(made: Mapping[str, Manifest]) -> Inputs:
            return {
                "embeddings": Selection.of(made["embed_documents"], **where),
                "memory": Selection.of(made[store]),
            }

        def examples_of(made: Mapping[str, Manifest]) -> Inputs:
            documents, tokens = made["curate_documents"], made["tokenize_images"]
            return {
                "documents": Selection.of(documents, **where),
                "image_tokens": Selection.of(tokens, **where),
                "contexts": Selection.of(made[retrieve]),
                "memory_documents": Selection.of(documents, role=roles),
                "memory_tokens": Selection.of(tokens, role=roles),
                "text_tokenizer": Selection.of(made["train_text_tokenizer"]),
            }

        assemble = self.config.assemble.model_copy(
            update={"memory": memory, "max_text_tokens": self.config.max_text_tokens}
        )
        needs = ("curate_documents", "tokenize_images", retrieve, "train_text_tokenizer")
        chosen_by = [sorted(roles), {tag: sorted(values) for tag, values in where.items()}]
        return [
            step_of(
                retrieve,
                RetrieveContexts(),
                self._retrieval(memory),
                ("embed_documents", store),
                contexts_of,
                flow,
                chosen_by=chosen_by,
            ),
            step_of(
                f"assemble_examples[{label}]",
                AssembleExamples(),
                assemble,
                needs,
                examples_of,
                flow,
                chosen_by=chosen_by,
            ),
        ]


_REPORTED = (
    "scores",
    "documents",
    "source_rows",
    "generator",
    "generations",
    "examples.evaluation",
)
"""What the report reads, by the start of its reference's name."""


def _report(config: RunConfig, steps: Sequence[Step], run_id: str) -> Step:
    """The last step: it reads the results, and tells about all steps."""
    read = {
        step.ref.replace("examples.evaluation", "examples"): step.label
        for step in steps
        if step.ref.startswith(_REPORTED)
    }
    recipe = json.dumps(config.model_dump(mode="json"))
    edges = Dag(steps=tuple(steps)).edges

    def make(made: Mapping[str, Manifest]) -> StageCall:
        told = tuple((step.label, made[step.label]) for step in steps if step.label in made)
        return StageCall(
            stage=WriteReport(told, edges, recipe, run_id=run_id),
            config=config.report,
            inputs=whole(**read)(made),
            label="write_report",
        )

    return Step(
        label="write_report",
        needs=tuple(read.values()),
        make=make,
        flow="evaluate",
        kind="report",
        identity=digest_of(["write_report", recipe]),
        ref="report",
    )
