"""Generates: images from captions and captions from images, contexts in front."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from pipelines.models import (
    LoadedGenerator,
    load_generator,
    load_image_tokenizer,
    load_text_tokenizer,
    pin_threads,
)
from pipelines.records import examples_of, image_png, order_of
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import (
    Inputs,
    ShardFunction,
    ShardOutput,
    ShardPlan,
    ShardStage,
    StageConfig,
)
from racm3.retriever.query import document_generator
from racm3.sampling.decode import SamplingConfig
from racm3.sequence.order import ContextOrder, context_order
from racm3.training.stream import Example, QueryContexts
from storage_schemas.fingerprint import canonical_json, digest_of
from storage_schemas.ids import generation_id
from storage_schemas.tables import TABLES

if TYPE_CHECKING:
    from racm3.image_tokenizer.base import ImageTokenizer
    from racm3.sampling.tasks import Prompt, Sampled
    from racm3.text_tokenizer import TextTokenizer

__all__ = ["Config", "Generate"]

Task = Literal["image", "caption"]


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
    images_per_prompt: int = Field(
        1, ge=1, description="images drawn of each caption; token accuracy is their mean"
    )
    prompts_per_group: int | None = Field(
        None, description="of each set and group at most so many prompts, chosen by digest"
    )
    prompts_per_shard: int = Field(64, description="unit of work and of reuse")
    seed: int = 0


class Generate(ShardStage[Config]):
    """`generations` for the prompts that evaluation examples hold."""

    name = "generate"
    version = 1
    kind = "generations"
    config_type = Config
    whole_inputs: ClassVar[tuple[str, ...]] = ("generator", "image_tokenizer", "text_tokenizer")
    gpu: ClassVar[bool] = True

    def plan(self, config: Config, inputs: Inputs, reader: Reader) -> list[ShardPlan]:
        """Chooses the prompts over all shards, then cuts them into pieces."""
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
        """Loads the generator and both tokenizers once."""
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
        )

        def run(plan: ShardPlan, reader: Reader) -> ShardOutput:
            table = reader.tables(plan.inputs["examples"])
            wanted = set(plan.slice["example_ids"])
            keep = pa.array([i in wanted for i in table.column("example_id").to_pylist()])
            asked = len(wanted) * sum(_samples(config, task) for task in config.tasks)
            return ShardOutput(table=writer.write(table.filter(keep)), rows_in=asked)

        return run


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
    ) -> None:
        self.config, self.order = config, order
        self.artifact_id, self.content = artifact_id, content
        self.generator, self.images, self.text = generator, images, text

    def write(self, table: pa.Table) -> pa.Table:
        """One row for each example, task and sample."""
        examples, places = examples_of(table), table.select(["set", "group", "concept"]).to_pylist()
        rows = []
        for task in self.config.tasks:
            asked = [
                (example, place, self._contexts(example, task), sample)
                for example, place in zip(examples, places, strict=True)
                for sample in range(_samples(self.config, task))
            ]
            prompts = [self._prompt(example, task, contexts) for example, _, contexts, _ in asked]
            seeds = [self._seed(e.document_id, task, sample) for e, _, _, sample in asked]
            drawn = self._sample(task, prompts, seeds)
            for (example, place, contexts, _), seed, one in zip(asked, seeds, drawn, strict=True):
                rows.append(self._row(task, example, place, contexts, seed, one))
        return pa.Table.from_pylist(rows, schema=TABLES["generations"].arrow)

    def _contexts(self, example: Example, task: Task) -> QueryContexts | None:
        """What the prompt retrieves, in the order fed."""
        ranked = _retrieved(example, task, self.config.k)
        if ranked is None:
            return None
        shuffle = document_generator(self.config.seed, example.document_id)
        ranks = context_order(len(ranked.contexts), self.order, shuffle)
        return replace(
            ranked,
            document_ids=tuple(ranked.document_ids[i] for i in ranks),
            contexts=tuple(ranked.contexts[i] for i in ranks),
        )

    def _prompt(self, example: Example, task: Task, contexts: QueryContexts | None) -> Prompt:
        from racm3.sampling.tasks import Prompt

        image = task == "image"
        return Prompt(
            contexts=contexts.contexts if contexts else (),
            text=example.main.text if image else None,
            image=None if image else example.main.image,
        )

    def _sample(self, task: Task, prompts: Sequence[Prompt], seeds: list[int]) -> list[Sampled]:
        from racm3.sampling.tasks import sample_captions, sample_images

        draw = sample_images if task == "image" else sample_captions
        settings = self.config.images if task == "image" else self.config.captions
        model, layout = self.generator.model, self.generator.layout
        return draw(model, layout, prompts, settings, seeds=seeds)

    def _seed(self, document_id: str, task: Task, sample: int) -> int:
        """The same for every model, so that only the model differs."""
        return int(digest_of([self.config.seed, document_id, task, sample])[:15], 16)

    def _row(
        self,
        task: Task,
        example: Example,
        place: dict[str, Any],
        contexts: QueryContexts | None,
        seed: int,
        sample: Sampled,
    ) -> dict[str, Any]:
        settings = self.config.images if task == "image" else self.config.captions
        sampler = canonical_json(asdict(settings)).decode()
        fed = list(contexts.document_ids) if contexts else []
        caption = self.text.decode(list(example.main.text))
        image = task == "image"
        written = sample.document.image if image else sample.document.text
        return place | {
            "generation_id": generation_id(
                model=self.content,
                task=task,
                prompt=example.document_id,
                contexts=fed,
                sampler=digest_of(json.loads(sampler)),
                seed=seed,
            ),
            "model": self.config.model,
            "generator": self.artifact_id,
            "task": task,
            "prompt": caption if image else None,
            "prompt_id": example.document_id,
            "memory": self.config.memory,
            "k": self.config.k,
            "contexts": fed,
            "sampler": sampler,
            "seed": seed,
            "output_tokens": list(written),
            "image": self._png(sample.document.image) if image else None,
            "caption": None if image else self.text.decode(list(sample.document.text)),
            "log_likelihood": sample.logprob,
            "candidate_scores": [sample.logprob],
        }

    def _png(self, codes: Sequence[int]) -> bytes:
        import torch

        from racm3.training.image_tokenizer import tensor_to_images

        with torch.no_grad():
            pixels = self.images.decode(torch.tensor([list(codes)]))
        return image_png(tensor_to_images(pixels)[0])


def _retrieved(example: Example, task: Task, k: int) -> QueryContexts | None:
    """What the prompt alone retrieves: by caption for an image, by image for a caption."""
    side = "text" if task == "image" else "image"
    asked = [query for query in example.queries if query.query == side]
    if not asked or k == 0:
        return None
    whole = min(asked, key=lambda query: query.draw)
    return replace(whole, document_ids=whole.document_ids[:k], contexts=whole.contexts[:k])
