"""Asks a generator about examples and writes down what it makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.generation.asking import NO_OTHER_DOCUMENT, Asked, Canvas, Task, ask
from pipelines.generation.ranking import ClipRanker, picture
from pipelines.generation.settings import Config
from pipelines.models import LoadedGenerator
from pipelines.records import examples_of
from racm3.retriever.query import document_generator
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
    from racm3.training.examples import Example

__all__ = ["Writer"]


class Writer:
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
        """Takes all that is needed to draw.

        Args:
            config: what is asked, and how.
            order: of retrieved contexts.
            artifact_id: of the generator.
            content: digest of the generator.
            generator: that is asked.
            images: makes pictures of codes.
            text: makes words of tokens.
            encoder: ranks by clip; None: nothing is ranked so.
            seen: image vectors of the prompts' documents, where captions are ranked by clip.
        """
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
            count = self.config.samples(task)
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
        settings = self.config.sampler(task)
        if task == "caption":
            return sample_captions(model, layout, prompts, settings, seeds=seeds)
        if task in ("infill", "edit"):
            holes, filling = [one.hole for one in asked], self.config.filling
            return infill_images(
                model, layout, prompts, holes, settings, seeds=seeds, filling=filling
            )
        return sample_images(model, layout, prompts, settings, seeds=seeds)

    def _seed(self, document_id: str, task: Task, sample: int) -> int:
        """The same for every model, so that only the model differs."""
        return int(digest_of([self.config.seed, document_id, task, sample])[:15], 16)

    def _sampler(self, task: Task) -> dict[str, Any]:
        """Everything but the seed that a draw depends on, as far as it differs from the default."""
        sampler = self.config.sampler(task).record()
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
