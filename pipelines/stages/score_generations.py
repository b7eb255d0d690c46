"""The score table: RA-CM3 and its baselines side by side, and what copying would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipelines.models import load_encoder, load_generator, load_image_tokenizer, pin_threads
from pipelines.records import (
    KEPT,
    context_pool,
    examples_of,
    image_array,
    order_of,
    rows_of,
    samples_of,
)
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import FitOutput, FitStage, Inputs, StageConfig, Workspace
from pipelines.scoring.board import Board, Place, Slice, slices_of
from pipelines.scoring.copying import add_copy_rates, fed_documents
from pipelines.scoring.perplexities import Contender, Protocol, measure_perplexities
from pipelines.scoring.retrieval import add_recall, counterparts
from pipelines.scoring.samples import (
    Answers,
    Truth,
    add_caption_scores,
    add_image_scores,
    add_ratios,
)
from racm3.document import DocumentTokens
from racm3.encoder.base import MultimodalEncoder
from racm3.metrics.copy_rows import copy_top
from racm3.metrics.score import Score
from racm3.sequence.order import ContextOrder
from racm3.training.stream import Example

__all__ = ["Config", "ScoreGenerations"]

COPY = "copy the top document"
FLOOR = "image tokenizer"


class Config(StageConfig):
    """What is measured."""

    ks: tuple[int, ...] = Field((0, 1, 2), description="contexts at which perplexity is measured")
    k: int = Field(2, description="contexts at which models are compared")
    context_order: ContextOrder | None = Field(
        None, description="of the contexts; none: as in training, best first where it shuffles"
    )
    baseline: str = Field("vanilla", description="generator that the others are compared with")
    seed: int = 0
    resamples: int = Field(2000, description="draws of the bootstrap")


class ScoreGenerations(FitStage[Config]):
    """`scores` from generators, evaluation examples by memory, and generations.

    Inputs are named `generator.<model>`, `examples.<memory>`, `generations.<model>.<memory>`,
    `train` (wrong contexts are drawn from it), `documents`, `scorer`, `image_tokenizer`.
    """

    name = "score_generations"
    version = 1
    kind = "scores"
    config_type = Config
    gpu = True

    def fit(
        self, config: Config, inputs: Inputs, reader: Reader, workspace: Workspace
    ) -> FitOutput:
        """Measures everything; the generators' training compute stands beside it."""
        pin_threads(workspace.threads)
        board, work = Board(), _Work(config, inputs, reader, workspace)
        measure_perplexities(
            board,
            work.contenders(),
            work.examples,
            work.places,
            work.wrong_contexts(),
            Protocol(
                ks=config.ks,
                k=config.k,
                baseline=config.baseline,
                seed=config.seed,
                resamples=config.resamples,
            ),
            work.tick,
        )
        work.add_samples(board)
        work.add_recall(board)
        work.add_compute(board)
        table = board.table()
        return FitOutput(tables={"scores": table}, rows_in=table.num_rows, rows_out=table.num_rows)


class _Work:
    """Everything that is read once."""

    def __init__(
        self, config: Config, inputs: Inputs, reader: Reader, workspace: Workspace
    ) -> None:
        self.config, self.inputs, self.reader, self.workspace = config, inputs, reader, workspace
        self.examples: dict[str, list[Example]] = {}
        self.places: dict[str, tuple[list[Place], list[Slice]]] = {}
        for name in self._named("examples."):
            memory = name.removeprefix("examples.")
            table = reader.tables(inputs[name].tables("examples"))
            self.examples[memory] = examples_of(table)
            places = [_place(row) for row in _rows(table)]
            self.places[memory] = (places, slices_of(places))
        self._ticks = 0

    def tick(self, note: str) -> None:
        """One more thing is done."""
        self._ticks += 1
        total = 14 * len(self.examples) + len(self._named("generations."))
        self.workspace.report(min(self._ticks, total), total, note)

    def wrong_contexts(self) -> list[DocumentTokens]:
        """Training documents, of which some are drawn as wrong contexts."""
        train = self.inputs["train"]
        return context_pool(train, examples_of(self.reader.tables(train.tables("examples"))))

    def contenders(self) -> list[Contender]:
        """All generators."""
        found = []
        for name in self._named("generator."):
            selection = self.inputs[name]
            found.append(
                Contender(
                    name=name.removeprefix("generator."),
                    generator=load_generator(self.reader.files(selection)),
                    reads_contexts=selection.manifest.config["stream"]["max_k"] > 0,
                    order=self.config.context_order or order_of(selection.manifest),
                )
            )
        return found

    def add_compute(self, board: Board) -> None:
        """What each generator's training cost: the two protocols of fairness need it."""
        for name in self._named("generator."):
            facts = self.inputs[name].manifest.facts
            for metric, unit in (("training_flops", "FLOP"), ("training_tokens", "token")):
                score = Score(
                    name=metric,
                    value=float(facts[metric]),
                    unit=unit,
                    higher_is_better=False,
                    n=int(facts["steps"]),
                    protocol="counted by formula, contexts included; n is the number of steps",
                )
                where = Slice(set="", group="", index=np.array([], dtype=np.int64))
                board.add(score, model=name.removeprefix("generator."), task="", where=where)

    def add_samples(self, board: Board) -> None:
        """Scores of drawn images and written captions, copy rows, the tokenizer's floor."""
        scorer: MultimodalEncoder = load_encoder(self.reader.files(self.inputs["scorer"]))
        answered = {name: self._answers(name) for name in self._named("generations.")}
        every = [part for parts in answered.values() for part in parts]
        documents = self._documents(fed_documents(every))
        truth = self._truth(documents, scorer)
        seed = self.config.seed
        drawn: dict[str, list[tuple[Answers, NDArray[np.float64]]]] = {}
        for name, answers in answered.items():
            for part in answers:
                accuracy = add_image_scores(board, part, truth, scorer, seed=seed)
                add_caption_scores(board, part, truth)
                if accuracy is not None:
                    drawn.setdefault(part.model, []).append((part, accuracy))
            self.tick(f"{name}: samples")
        for base in drawn.get(self.config.baseline, []):
            for model, parts in drawn.items():
                for ours in parts if model != self.config.baseline else []:
                    add_ratios(board, ours, base, seed=seed, resamples=self.config.resamples)
        for part in [*self._copies(documents), *self._floor(truth)]:
            add_image_scores(board, part, truth, scorer, seed=seed)
            add_caption_scores(board, part, truth)
        examples = [example for some in self.examples.values() for example in some]
        add_copy_rates(board, every, examples, documents, truth, scorer)

    def add_recall(self, board: Board) -> None:
        """Whether the memories' contexts are of the concept that is asked for."""
        columns = ["document_id", "concept", "role", "outcome"]
        table = self.reader.tables(self.inputs["documents"].tables("documents"), columns)
        asked = {place.cluster for places, _ in self.places.values() for place in places}
        found = counterparts(table, asked)
        for memory, examples in self.examples.items():
            add_recall(board, examples, *self.places[memory], found, memory=memory)

    def _named(self, prefix: str) -> list[str]:
        return sorted(name for name in self.inputs if name.startswith(prefix))

    def _documents(self, fed: set[str]) -> Mapping[str, dict[str, Any]]:
        columns = ["document_id", "caption", "image", "outcome"]
        table = self.reader.tables(self.inputs["documents"].tables("documents"), columns)
        wanted = fed | {e.document_id for some in self.examples.values() for e in some}
        wanted |= {
            i for s in self.examples.values() for e in s for q in e.queries
            for i in q.document_ids[:1]
        }  # fmt: skip
        rows = rows_of(table, sorted(wanted)).to_pylist()
        return {r["document_id"]: r for r in rows if r["outcome"] == KEPT}

    def _truth(self, documents: Mapping[str, dict[str, Any]], scorer: MultimodalEncoder) -> Truth:
        codes = {e.document_id: np.array(e.main.image) for s in self.examples.values() for e in s}
        ids = sorted(codes)
        images = np.stack([image_array(documents[i]["image"]) for i in ids])
        captions = [documents[i]["caption"] for i in ids]
        return Truth(
            images=dict(zip(ids, images, strict=True)),
            captions=dict(zip(ids, captions, strict=True)),
            codes=codes,
            image_features=dict(zip(ids, scorer.encode_images(images), strict=True)),
            text_features=dict(zip(ids, scorer.encode_text(captions), strict=True)),
        )

    def _answers(self, name: str) -> list[Answers]:
        """One record for the images and one for the captions of one generations artifact."""
        table = self.reader.tables(self.inputs[name].tables("generations"))
        found = []
        for task in ("image", "caption"):
            samples = list(samples_of(table, task).values())
            if not samples:
                continue
            rows = [of_prompt[0] for of_prompt in samples]
            places = tuple(_place(row | {"document_id": row["prompt_id"]}) for row in rows)
            part = Answers(
                model=rows[0]["model"],
                k=rows[0]["k"],
                memory=rows[0]["memory"] or "",
                places=places,
                slices=tuple(slices_of(places)),
            )
            if task == "image":
                part = replace(
                    part,
                    images=np.stack([image_array(row["image"]) for row in rows]),
                    codes=np.array([[row["output_tokens"] for row in some] for some in samples]),
                    contexts=tuple(tuple(row["contexts"]) for row in rows),
                )
            else:
                part = replace(part, captions=tuple(row["caption"] for row in rows))
            found.append(part)
        return found

    def _copies(self, documents: Mapping[str, dict[str, Any]]) -> list[Answers]:
        """What one gets by handing over the top document of each memory."""
        found = []
        for memory, examples in self.examples.items():
            places = self.places[memory][0]
            for side in ("text", "image"):
                ranked = [_top(example, side) for example in examples]
                images = {i: row["image"] for i, row in documents.items()}
                captions = {i: row["caption"] for i, row in documents.items()}
                index, answers = copy_top(ranked, images if side == "text" else captions)
                kept = tuple(places[i] for i in index)
                if not kept:
                    continue
                part = Answers(
                    model=COPY, k=1, memory=memory, places=kept, slices=tuple(slices_of(kept))
                )
                if side == "text":
                    pixels = np.stack([image_array(a) for a in answers])
                    part = replace(part, images=pixels, codes=_top_codes(examples, index))
                else:
                    part = replace(part, captions=tuple(answers))
                found.append(part)
        return found

    def _floor(self, truth: Truth) -> list[Answers]:
        """The originals through the image tokenizer and back: no generator does better."""
        import torch

        from racm3.training.image_tokenizer import tensor_to_images

        tokenizer = load_image_tokenizer(self.reader.files(self.inputs["image_tokenizer"]))
        found = []
        for memory in self.examples:
            places, slices = self.places[memory]
            codes = torch.tensor(np.stack([truth.codes[p.document_id] for p in places]))
            with torch.no_grad():
                parts = [tensor_to_images(tokenizer.decode(c)) for c in torch.split(codes, 64)]
            found.append(
                Answers(
                    model=FLOOR,
                    k=0,
                    memory="",
                    places=tuple(places),
                    slices=tuple(slices),
                    images=np.concatenate(parts),
                )
            )
        return found


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.select(
        ["document_id", "set", "group", "concept"]
    ).to_pylist()
    return rows


def _place(row: Mapping[str, Any]) -> Place:
    return Place(
        document_id=row["document_id"],
        set=row["set"] or "",
        group=row["group"] or "",
        cluster=row["concept"] or row["document_id"],
    )


def _top(example: Example, side: str) -> Sequence[str]:
    asked = [query for query in example.queries if query.query == side]
    return min(asked, key=lambda query: query.draw).document_ids[:1] if asked else ()


def _top_codes(examples: Sequence[Example], index: Sequence[int]) -> NDArray[np.int64] | None:
    """[n, 1, h*w]; None where contexts show no image."""
    codes = []
    for i in index:
        asked = [query for query in examples[i].queries if query.query == "text"]
        codes.append(min(asked, key=lambda query: query.draw).contexts[0].image)
    return np.array(codes)[:, None] if all(codes) else None
