"""The score table: RA-CM3 and its baselines side by side, and what copying would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipelines.models import (
    load_encoder,
    load_generator,
    load_image_tokenizer,
    load_text_tokenizer,
    pin_threads,
)
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
from pipelines.scoring.baselines import copies, floor
from pipelines.scoring.board import PLACE_COLUMNS, Board, Place, Slice, place_of, slices_of
from pipelines.scoring.copying import add_copy_rates, fed_documents
from pipelines.scoring.few_shot import FewShotConfig, Watch, few_shots_of, measure_few_shot
from pipelines.scoring.few_shot_pool import read_pool
from pipelines.scoring.inception import InceptionWeights, open_inception
from pipelines.scoring.perplexities import (
    Asked,
    Contender,
    Protocol,
    measure_perplexities,
    perplexities_of,
)
from pipelines.scoring.retrieval import add_recall, counterparts
from pipelines.scoring.samples import (
    Answers,
    Instruments,
    Measured,
    Truth,
    compare,
    compare_with_copy,
    measure,
)
from racm3.document import DocumentTokens
from racm3.metrics.score import Score
from racm3.sequence.order import ContextOrder
from racm3.training.examples import Example

if TYPE_CHECKING:
    from racm3.image_tokenizer.base import ImageTokenizer
    from racm3.text_tokenizer import TextTokenizer

__all__ = ["Config", "ScoreGenerations"]


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
    few_shot: FewShotConfig = FewShotConfig()
    distance_pairs: Literal["all", "apart"] = Field(
        "all",
        description="images that meet in KID and CMMD: all, or of different concepts only, which "
        "is unbiased where an image was made for a real one's prompt",
    )
    inception: InceptionWeights | None = Field(
        None, description="weights of FID's network; none: no FID"
    )

    def canonical(self) -> dict[str, Any]:
        """The weights are known by their digest, wherever they lie."""
        values = super().canonical()
        if values["inception"] is not None:
            del values["inception"]["path"]
        return values


class ScoreGenerations(FitStage[Config]):
    """`scores` from generators, evaluation examples by memory, and generations.

    Inputs are named `generator.<model>`, `examples.<memory>`, `generations.<model>.<memory>`,
    `train` (wrong contexts are drawn from it), `documents`, `image_tokenizer`, `text_tokenizer`;
    `scorer`, where there are generations; `image_tokens`, of the memory, where few-shot
    classification shows documents of other sources.
    """

    name = "score_generations"
    version = 2
    kind = "scores"
    config_type = Config
    gpu = True

    def fit(
        self, config: Config, inputs: Inputs, reader: Reader, workspace: Workspace
    ) -> FitOutput:
        """Measures everything; the generators' training compute stands beside it."""
        pin_threads(workspace.threads)
        protocol = Protocol(
            ks=config.ks,
            k=config.k,
            baseline=config.baseline,
            seed=config.seed,
            resamples=config.resamples,
        )
        board, work = Board(), _Work(config, inputs, reader, workspace, protocol)
        measure_perplexities(
            board, work.contenders, work.asked(), work.wrong_contexts(), protocol, work.tick
        )
        facts = {}
        if work.pool is not None:
            facts["few_shot_left_out"] = measure_few_shot(
                board,
                work.classifying,
                work.pool,
                work.text,
                config.few_shot,
                protocol,
                Watch(done=work.tick, reading=work.reading),
            )
        if work.answered:
            work.add_samples(board)
        work.add_recall(board)
        work.add_compute(board)
        table = board.table()
        count = table.num_rows
        return FitOutput(tables={"scores": table}, rows_in=count, rows_out=count, facts=facts)


class _Work:
    """Everything that is read once."""

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        reader: Reader,
        workspace: Workspace,
        protocol: Protocol,
    ) -> None:
        self.config, self.inputs, self.reader, self.workspace = config, inputs, reader, workspace
        self.examples: dict[str, list[Example]] = {}
        self.places: dict[str, tuple[list[Place], list[Slice]]] = {}
        for name in self._named("examples."):
            memory = name.removeprefix("examples.")
            table = self.tables(name)
            self.examples[memory] = examples_of(table)
            places = [place_of(row) for row in table.select(PLACE_COLUMNS).to_pylist()]
            self.places[memory] = (places, slices_of(places))
        asked = config.few_shot
        self.pool = read_pool(inputs, reader, asked.demonstrations) if asked.trials else None
        self.contenders = self._contenders()
        self.classifying = [one for one in self.contenders if "caption" in one.tasks]
        self._ticks, self._total = 0, self._parts(protocol)

    def tables(self, name: str) -> pa.Table:
        """All rows of an input of examples."""
        return self.reader.tables(self.inputs[name].tables("examples"))

    def tick(self, note: str) -> None:
        """One more thing is done."""
        self._ticks += 1
        self._tell(note)

    def reading(self, note: str, done: int, total: int) -> None:
        """The next thing is under way: so many of its sequences are read."""
        self._tell(f"{note}, {done:,} of {total:,} sequences")

    def _tell(self, note: str) -> None:
        self.workspace.report(self._ticks, self._total, note)

    def _parts(self, protocol: Protocol) -> int:
        """How many things will be done."""
        found = len(self.examples) * perplexities_of(self.contenders, protocol)
        if self.pool is not None:
            found += few_shots_of(self.pool, self.config.few_shot) * len(self.classifying)
        return found + len(self._named("generations."))

    def wrong_contexts(self) -> list[DocumentTokens]:
        """Training documents, of which some are drawn as wrong contexts."""
        return context_pool(self.inputs["train"], examples_of(self.tables("train")))

    def _contenders(self) -> list[Contender]:
        """All generators."""
        found = []
        for name in self._named("generator."):
            selection = self.inputs[name]
            stream = selection.manifest.config["stream"]
            found.append(
                Contender(
                    name=name.removeprefix("generator."),
                    generator=load_generator(self.reader.files(selection)),
                    reads_contexts=stream["max_k"] > 0,
                    tasks=("image",) if stream["objective"] == "causal" else ("image", "caption"),
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

    def asked(self) -> dict[str, Asked]:
        """The examples of each memory, with the extent of their images and captions."""
        found = {}
        for memory, examples in self.examples.items():
            sizes = [self.images[e.document_id].shape for e in examples]
            found[memory] = Asked(
                examples=examples,
                places=self.places[memory][0],
                slices=self.places[memory][1],
                pixels=np.array([height * width for height, width, _ in sizes], dtype=np.float64),
                spelt=[self.text.byte_lengths(e.main.text) for e in examples],
            )
        return found

    def add_samples(self, board: Board) -> None:
        """Scores of drawn images and written captions, copy rows, the tokenizer's floor."""
        truth, how = self.truth, self.instruments
        measured: dict[str, list[Measured]] = {}
        for name, answers in self.answered.items():
            for part in answers:
                measured.setdefault(part.model, []).append(measure(board, part, truth, how))
            self.tick(f"{name}: samples")
        for base in measured.get(self.config.baseline, []):
            for model, parts in measured.items():
                for ours in parts if model != self.config.baseline else []:
                    compare(board, ours, base, truth, how)
        for memory, examples in self.examples.items():
            places = self.places[memory][0]
            for part in copies(memory, examples, places, self.documents):
                copied = measure(board, part, truth, how)
                for ours in (one for parts in measured.values() for one in parts):
                    compare_with_copy(board, ours, copied, truth, how)
            measure(board, floor(places, truth, self._tokenizer()), truth, how)
        every = [part for parts in self.answered.values() for part in parts]
        asked = [example for some in self.examples.values() for example in some]
        add_copy_rates(board, every, asked, self.documents, truth, how.scorer)

    def add_recall(self, board: Board) -> None:
        """Whether the memories' contexts are of the concept that is asked for."""
        columns = ["document_id", "concept", "role", "outcome"]
        table = self.reader.tables(self.inputs["documents"].tables("documents"), columns)
        asked = {place.cluster for places, _ in self.places.values() for place in places}
        found = counterparts(table, asked)
        for memory, examples in self.examples.items():
            add_recall(board, examples, *self.places[memory], found, memory=memory)

    @cached_property
    def text(self) -> TextTokenizer:
        """The text tokenizer."""
        return load_text_tokenizer(self.reader.files(self.inputs["text_tokenizer"]))

    @cached_property
    def instruments(self) -> Instruments:
        """What samples are measured with."""
        config = self.config
        inception = None if config.inception is None else open_inception(config.inception)
        return Instruments(
            scorer=load_encoder(self.reader.files(self.inputs["scorer"])),
            inception=None if inception is None else inception.encode_images,
            pairs=config.distance_pairs,
            seed=config.seed,
            resamples=config.resamples,
        )

    @cached_property
    def images(self) -> Mapping[str, NDArray[np.uint8]]:
        """Of the evaluation documents, by id."""
        ids = {e.document_id for some in self.examples.values() for e in some}
        return {name: image_array(self.documents[name]["image"]) for name in sorted(ids)}

    def _tokenizer(self) -> ImageTokenizer:
        return load_image_tokenizer(self.reader.files(self.inputs["image_tokenizer"]))

    def _named(self, prefix: str) -> list[str]:
        return sorted(name for name in self.inputs if name.startswith(prefix))

    @cached_property
    def answered(self) -> Mapping[str, list[Answers]]:
        """What was drawn and written, by the name of the input."""
        return {name: self._answers(name) for name in self._named("generations.")}

    @cached_property
    def documents(self) -> Mapping[str, dict[str, Any]]:
        """Evaluation documents, those that would be copied, and those that were read."""
        fed = fed_documents(part for parts in self.answered.values() for part in parts)
        columns = ["document_id", "caption", "image", "outcome"]
        table = self.reader.tables(self.inputs["documents"].tables("documents"), columns)
        wanted = fed | {e.document_id for some in self.examples.values() for e in some}
        wanted |= {
            i for s in self.examples.values() for e in s for q in e.queries
            for i in q.document_ids[:1]
        }  # fmt: skip
        rows = rows_of(table, sorted(wanted)).to_pylist()
        return {r["document_id"]: r for r in rows if r["outcome"] == KEPT}

    @cached_property
    def truth(self) -> Truth:
        """The evaluation documents as they are."""
        documents, how = self.documents, self.instruments
        codes = {e.document_id: np.array(e.main.image) for s in self.examples.values() for e in s}
        ids = sorted(codes)
        images = np.stack([self.images[i] for i in ids])
        captions = [documents[i]["caption"] for i in ids]
        inception = None if how.inception is None else how.inception(images)
        return Truth(
            images=dict(zip(ids, images, strict=True)),
            captions=dict(zip(ids, captions, strict=True)),
            codes=codes,
            image_features=dict(zip(ids, how.scorer.encode_images(images), strict=True)),
            text_features=dict(zip(ids, how.scorer.encode_text(captions), strict=True)),
            inception_features=None
            if inception is None
            else dict(zip(ids, inception, strict=True)),
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
            places = tuple(place_of(row | {"document_id": row["prompt_id"]}) for row in rows)
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
                    further=_further(samples),
                    codes=np.array([[row["output_tokens"] for row in some] for some in samples]),
                    contexts=tuple(tuple(row["contexts"]) for row in rows),
                )
            else:
                part = replace(part, captions=tuple(row["caption"] for row in rows))
            found.append(part)
        return found


def _further(samples: Sequence[Sequence[Mapping[str, Any]]]) -> NDArray[np.uint8] | None:
    """Images of all samples but the first, [n, samples - 1, H, W, 3]."""
    if len(samples[0]) == 1:
        return None
    return np.stack([np.stack([image_array(row["image"]) for row in some[1:]]) for some in samples])
