"""Generates: images and captions, holes in images, edits, and drawings after demonstrations."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipelines.errors import UsageError
from pipelines.generation.asking import NO_OTHER_DOCUMENT, Asked, Canvas, Task, ask
from pipelines.generation.ranking import ClipRanker, Rank, picture
from pipelines.made_with import check_together
from pipelines.models import (
    LoadedGenerator,
    device,
    load_encoder,
    load_generator,
    load_image_tokenizer,
    load_text_tokenizer,
    pin_threads,
    weights_digest,
)
from pipelines.records import examples_of, order_of, vector_matrix
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import (
    Inputs,
    ShardFunction,
    ShardOutput,
    ShardPlan,
    ShardStage,
    StageConfig,
)
from racm3.encoder.clip import ClipSpec
from racm3.retriever.query import document_generator
from racm3.sampling.decode import SamplingConfig
from racm3.sampling.holes import BoxRule
from racm3.sampling.tasks import Filling
from racm3.sequence.order import ContextOrder, context_order
from storage_schemas.fingerprint import canonical_json, digest_of
from storage_schemas.ids import generation_id
from storage_schemas.tables import TABLES

if TYPE_CHECKING:
    from racm3.encoder.base import MultimodalEncoder
    from racm3.image_tokenizer.base import ImageTokenizer
    from racm3.sampling.candidates import Chosen
    from racm3.sampling.tasks import Sampled
    from racm3.text_tokenizer import TextTokenizer
    from racm3.training.stream import Example

__all__ = ["Candidates", "Config", "Generate"]


class Candidates(StageConfig):
    """Of one task: how many samples of each prompt are drawn, and which one is kept."""

    count: int = Field(1, ge=1, description="samples drawn; 1: none is chosen")
    rank: Rank | None = Field(
        None, description="what the best is best by; none: clip for images, likelihood for captions"
    )


class Config(StageConfig):
    """Which model is asked, with which contexts, how it draws."""

    model: str = Field("", description="name of the generator; a run fills it in")
    memory: str | None = Field(None, description="name of the memory; a run fills it in")
    k: int = Field(2, description="contexts put in front")
    context_order: ContextOrder | None = Field(
        None, description="of the contexts; none: as in training, best first where it shuffles"
    )
    tasks: tuple[Task, ...] = ("image", "caption")
    images: SamplingConfig = Field(default_factory=SamplingConfig)
    captions: SamplingConfig = Field(default_factory=SamplingConfig)
    edits: SamplingConfig | None = Field(
        None,
        description="of edits, which guidance by contexts lets follow what is supplied; none: "
        "as images",
    )
    images_per_prompt: int = Field(
        1, ge=1, description="images drawn of each caption; token accuracy is their mean"
    )
    candidates: dict[Task, Candidates] = Field(
        default_factory=dict, description="by task; the best of several is kept"
    )
    pretrained: ClipSpec | None = Field(
        None, description="public CLIP of the retriever, where clip ranks; a run fills it in"
    )
    infill_box: BoxRule = Field("lower_half", description="pixels that an infill draws anew")
    edit_box: BoxRule = Field("centre", description="pixels that an edit draws anew")
    filling: Filling = Field("bridged", description="a box as one span, or as one a row of codes")
    prompts_per_group: int | None = Field(
        None, description="of each set and group at most so many prompts, chosen by digest"
    )
    prompts_per_shard: int = Field(64, description="unit of work and of reuse")
    seed: int = 0

    def ranked_by(self, task: Task) -> Rank | None:
        """What chooses among the candidates of a task; None: there is one."""
        found = self.candidates.get(task, Candidates())
        if found.count == 1:
            return None
        return found.rank or ("likelihood" if task == "caption" else "clip")

    @property
    def needs_clip(self) -> bool:
        """Whether candidates of some task are ranked by the retriever's encoder."""
        return any(self.ranked_by(task) == "clip" for task in self.tasks)

    @property
    def needs_vectors(self) -> bool:
        """Whether captions are ranked by how well they fit the picture itself."""
        return "caption" in self.tasks and self.ranked_by("caption") == "clip"


class Generate(ShardStage[Config]):
    """`generations` for the prompts that evaluation examples hold.

    Its input `encoder` is read only where candidates are ranked by a CLIP that was fitted here;
    `embeddings`, of the prompts' pictures, only where captions are ranked by it.
    """

    name = "generate"
    version = 2
    kind = "generations"
    config_type = Config
    whole_inputs: ClassVar[tuple[str, ...]] = (
        "generator",
        "image_tokenizer",
        "text_tokenizer",
        "encoder",
        "embeddings",
    )
    gpu: ClassVar[bool] = True

    def environment(self, config: Config) -> str:
        """Weights given as a file are known by their digest, not by their path."""
        file = config.pretrained.pretrained if config.pretrained else None
        return weights_digest(file) if file and Path(file).is_file() else ""

    def plan(self, config: Config, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """Chooses the prompts over all shards, then cuts them into pieces.

        Raises:
            UsageError: when the inputs do not fit together, or candidates are to be ranked by an
                encoder that is not given.
        """
        _check(config, inputs, reader)
        shards = inputs["examples"].tables("examples")
        columns = ["example_id", "document_id", "set", "group"]
        rows = [
            (i, row) for i, s in enumerate(shards) for row in reader.table(s, columns).to_pylist()
        ]
        chosen = _choose(rows, config.prompts_per_group)
        plans = []
        for index, shard in enumerate(shards):
            ids = sorted(row["example_id"] for i, row in chosen if i == index)
            for start in range(0, len(ids), config.prompts_per_shard):
                piece = {"example_ids": ids[start : start + config.prompts_per_shard]}
                tags = dict(shard.tags) | {"piece": str(start)}
                plans.append(ShardPlan(inputs={"examples": (shard,)}, slice=piece, tags=tags))
        return plans

    def build(self, config: Config, whole: Inputs, reader: Reader) -> ShardFunction:
        """Loads the generator, both tokenizers and, where it ranks, the encoder once."""
        pin_threads()
        trained = whole["generator"].manifest
        writer = _Writer(
            config,
            order=config.context_order or order_of(trained),
            artifact_id=trained.artifact_id,
            content=whole["generator"].content_digest,
            generator=load_generator(reader.files(whole["generator"])),
            images=load_image_tokenizer(reader.files(whole["image_tokenizer"])),
            text=load_text_tokenizer(reader.files(whole["text_tokenizer"])),
            encoder=_encoder(config, whole, reader) if config.needs_clip else None,
            seen=_seen(whole, reader) if config.needs_vectors else {},
        )

        def run(plan: ShardPlan, reader: Reader) -> ShardOutput:
            table = reader.tables(plan.inputs["examples"])
            wanted = set(plan.slice["example_ids"])
            keep = pa.array([i in wanted for i in table.column("example_id").to_pylist()])
            asked = len(wanted) * sum(_samples(config, task) for task in config.tasks)
            written, dropped = writer.write(table.filter(keep))
            return ShardOutput(table=written, rows_in=asked, dropped=dropped)

        return run


def _check(config: Config, inputs: Inputs, reader: Reader) -> None:
    """Refuses inputs of different tokenizers or encoders, before anything is loaded."""
    store, generator = reader.store, inputs["generator"].manifest
    examples = inputs["examples"].manifest
    for kind in ("text_tokenizer", "image_tokenizer"):
        tokenizer = inputs[kind].manifest
        check_together(store, generator, tokenizer, kind)
        check_together(store, examples, tokenizer, kind)
    if config.memory is not None:
        check_together(store, generator, examples, "encoder")
    if config.needs_clip and ("encoder" in inputs) == (config.pretrained is not None):
        raise UsageError(
            "generate: candidates ranked by clip need the retriever's encoder: give either a "
            "fitted encoder or generate.pretrained"
        )
    if config.needs_vectors:
        if "embeddings" not in inputs:
            raise UsageError("generate: captions ranked by clip need the prompts' embeddings")
        check_together(store, examples, inputs["embeddings"].manifest, "encoder")


def _encoder(config: Config, whole: Inputs, reader: Reader) -> MultimodalEncoder:
    from racm3.encoder.clip import load_clip

    if config.pretrained is not None:
        return load_clip(config.pretrained, device=device())
    return load_encoder(reader.files(whole["encoder"]))


def _seen(whole: Inputs, reader: Reader) -> dict[str, NDArray[np.float32]]:
    """Image vectors of documents, by id."""
    shards = whole["embeddings"].tables("embeddings")
    table = reader.tables(shards, ["document_id", "image_vector"])
    vectors = vector_matrix(table.column("image_vector"))
    return dict(zip(table.column("document_id").to_pylist(), vectors, strict=True))


def _samples(config: Config, task: Task) -> int:
    return config.images_per_prompt if task == "image" else 1


def _choose(
    rows: list[tuple[int, dict[str, Any]]], limit: int | None
) -> list[tuple[int, dict[str, Any]]]:
    """At most `limit` of each (set, group), the same documents whatever shards and memory are."""
    if limit is None:
        return rows
    groups: dict[tuple[Any, Any], list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for index, row in sorted(rows, key=lambda item: item[1]["document_id"]):
        groups[row["set"], row["group"]].append((index, row))
    return [item for members in groups.values() for item in members[:limit]]


class _Writer:
    """Writes all samples of some examples."""

    def __init__(
        self,
        config: Config,
        *,
        order: ContextOrder,
        artifact_id: str,
        content: str,
        generator: LoadedGenerator,
        images: ImageTokenizer,
        text: TextTokenizer,
        encoder: MultimodalEncoder | None,
        seen: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self.config, self.order, self.seen = config, order, seen
        self.artifact_id, self.content = artifact_id, content
        self.generator, self.images, self.text = generator, images, text
        self.ranker = ClipRanker(encoder, images, text) if encoder is not None else None
        self.canvas = Canvas(
            size=(images.image_size, images.image_size),
            grid=images.grid,
            infill=config.infill_box,
            edit=config.edit_box,
            seed=config.seed,
        )

    def write(self, table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
        """One row for each example, task and sample, and what could not be asked, by reason."""
        examples, places = examples_of(table), table.select(["set", "group", "concept"]).to_pylist()
        rows: list[dict[str, Any]] = []
        missing = 0
        for task in self.config.tasks:
            asked: list[tuple[Example, Mapping[str, Any], Asked]] = []
            for example, place in zip(examples, places, strict=True):
                one = self._ask(example, task)
                asked += [(example, place, one)] if one is not None else []
            count = _samples(self.config, task)
            missing += count * (len(examples) - len(asked))
            every = [item for item in asked for _ in range(count)]
            seeds = [self._seed(e.document_id, task, n) for e, _, _ in asked for n in range(count)]
            looked_at = [example.document_id for example, _, _ in every]
            drawn = self._draw(task, [one for _, _, one in every], looked_at, seeds)
            for (example, place, one), seed, chosen in zip(every, seeds, drawn, strict=True):
                rows.append(self._row(task, example, place, one, seed, chosen))
        written = pa.Table.from_pylist(rows, schema=TABLES["generations"].arrow)
        return written, {NO_OTHER_DOCUMENT: missing} if missing else {}

    def _ask(self, example: Example, task: Task) -> Asked | None:
        """The question; what was retrieved for a prompt stands in the generator's order."""
        asked = ask(example, task, self.config.k, self.canvas)
        if asked is None or task in ("edit", "demonstrate"):
            return asked
        shuffle = document_generator(self.config.seed, example.document_id)
        return asked.in_order(context_order(len(asked.contexts), self.order, shuffle))

    def _draw(
        self, task: Task, asked: Sequence[Asked], documents: Sequence[str], seeds: Sequence[int]
    ) -> list[Chosen]:
        """The candidates of each question, and which is kept."""
        from racm3.sampling.candidates import best_of

        rank, ranker = self.config.ranked_by(task), self.ranker

        def clip(rows: Sequence[int], samples: Sequence[Sampled]) -> list[float]:
            assert ranker is not None
            if task != "caption":
                return ranker.score(samples)
            return ranker.score(samples, np.stack([self.seen[documents[row]] for row in rows]))

        return best_of(
            lambda rows, seeds: self._sample(task, [asked[row] for row in rows], seeds),
            seeds=seeds,
            count=self.config.candidates[task].count if rank else 1,
            score=clip if rank == "clip" else None,
        )

    def _sample(self, task: Task, asked: Sequence[Asked], seeds: Sequence[int]) -> list[Sampled]:
        from racm3.sampling.tasks import Prompt, infill_images, sample_captions, sample_images

        model, layout = self.generator.model, self.generator.layout
        prompts = [Prompt(contexts=one.contexts, text=one.text, image=one.image) for one in asked]
        settings = self._settings(task)
        if task == "caption":
            return sample_captions(model, layout, prompts, settings, seeds=seeds)
        if task in ("infill", "edit"):
            holes, filling = [one.hole for one in asked], self.config.filling
            return infill_images(
                model, layout, prompts, holes, settings, seeds=seeds, filling=filling
            )
        return sample_images(model, layout, prompts, settings, seeds=seeds)

    def _settings(self, task: Task) -> SamplingConfig:
        if task == "caption":
            return self.config.captions
        edits = self.config.edits if task == "edit" else None
        return edits or self.config.images

    def _seed(self, document_id: str, task: Task, sample: int) -> int:
        """The same for every model, so that only the model differs."""
        return int(digest_of([self.config.seed, document_id, task, sample])[:15], 16)

    def _sampler(self, task: Task) -> dict[str, Any]:
        """Everything but the seed that a draw depends on, as far as it differs from the default."""
        sampler = self._settings(task).record()
        if rank := self.config.ranked_by(task):
            sampler |= {"candidates": self.config.candidates[task].count, "rank": rank}
        if task in ("infill", "edit"):
            sampler |= {"filling": self.config.filling}
        return sampler

    def _row(
        self,
        task: Task,
        example: Example,
        place: Mapping[str, Any],
        asked: Asked,
        seed: int,
        chosen: Chosen,
    ) -> dict[str, Any]:
        sample, fed = chosen.best, list(asked.context_ids)
        sampler = canonical_json(self._sampler(task)).decode()
        box = list(asked.box.edges) if asked.box else None
        image = sample.document.image if task != "caption" else None
        return dict(place) | {
            "generation_id": generation_id(
                model=self.content,
                task=task,
                prompt=example.document_id,
                contexts=fed,
                sampler=digest_of(json.loads(sampler)),
                seed=seed,
                box=box,
            ),
            "model": self.config.model,
            "generator": self.artifact_id,
            "task": task,
            "prompt": self.text.decode(list(asked.text)) if asked.text is not None else None,
            "prompt_id": example.document_id,
            "memory": self.config.memory,
            "k": self.config.k,
            "contexts": fed,
            "box": box,
            "sampler": sampler,
            "seed": seed,
            "output_tokens": list(sample.document.text if image is None else image),
            "image": None if image is None else picture(self.images, image),
            "caption": self.text.decode(list(sample.document.text)) if image is None else None,
            "log_likelihood": sample.logprob,
            "candidate_scores": list(chosen.scores) if len(chosen.scores) > 1 else [sample.logprob],
        }
