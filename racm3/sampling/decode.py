"""Batched decoding with a cache: prompts of any lengths together, each with its own randomness.

A prompt that stands in a batch more than once (candidates, samples, the null prompt of many) is
read once, and what the cache holds of it is repeated.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from racm3.generator.cache import Cache
from racm3.generator.transformer import Generator
from racm3.sampling.grammar import Grammar
from racm3.sampling.logits import contrast, distribution, draw, guide, penalise, repeats
from racm3.sequence.layout import Layout
from racm3.sequence.places import PlaceCursor, Resume

Lacks = Literal["prompt", "contexts", "both"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How ids are drawn. The defaults are RA-CM3's nearest evidence: temperature only."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    temperature: float = 0.85
    """0 = the most likely id."""
    top_p: float = 1.0
    """Mass kept, in (0, 1]."""
    top_k: int | None = None
    """Ids kept; `None` = all."""
    guidance: float = 1.0
    """Classifier-free guidance; 1 = off (CM3Leon's best is about 3)."""
    null_lacks: Lacks = "prompt"
    """What the null prompt lacks: the prompt (CM3Leon), or the contexts (context-aware decoding,
    arXiv:2305.14739, whose alpha is `guidance` - 1), or both."""
    contrastive_k: int | None = None
    """CD-K's k; `None` = off. Excludes guidance."""
    contrastive_alpha: float = 0.5
    """CD-K's threshold, in (0, 1]."""
    amateur_temperature: float = 0.5
    """Of CD-K's amateur, which is the generator without the prompt."""
    repetition_penalty: float = 1.0
    """Power that lowers the probability of text tokens already written, >= 1; 1 = off."""
    no_repeat_ngram: int | None = None
    """No n text tokens in a row are written twice; `None` = off."""
    batch_size: int = 64
    """Most rows decoded together."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: A number is out of its range.
        """
        if self.temperature < 0 or self.amateur_temperature <= 0:
            raise ValueError("SamplingConfig: temperature must be >= 0, amateur_temperature > 0.")
        if not (0 < self.top_p <= 1 and 0 < self.contrastive_alpha <= 1):
            raise ValueError("SamplingConfig: top_p and contrastive_alpha must be in (0, 1].")
        if not self.repetition_penalty >= 1:
            raise ValueError("SamplingConfig.repetition_penalty must be at least 1 (1: off).")
        for name in ("top_k", "contrastive_k", "no_repeat_ngram", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"SamplingConfig.{name} must be at least 1.")
        if self.contrastive_k is not None and self.guidance != 1:
            raise ValueError("SamplingConfig: use guidance or contrastive_k, not both.")

    @property
    def needs_null(self) -> bool:
        """Whether the prompt without its condition is read too."""
        return self.guidance != 1 or self.contrastive_k is not None

    def record(self) -> dict[str, Any]:
        """As plain values, for whoever keeps a sample; repetition control only where it is on.

        (Samples drawn before there was any keep their identity.)
        """
        values = asdict(self)
        if self.repetition_penalty == 1:
            del values["repetition_penalty"]
        if self.no_repeat_ngram is None:
            del values["no_repeat_ngram"]
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Ids to be continued."""

    ids: tuple[int, ...]
    """From the leading ``</s>`` on."""
    num_contexts: int
    """Contexts among them."""
    resumes: tuple[Resume, ...] = ()
    """Where the source goes on after each sentinel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One sample to be drawn."""

    source: Source
    """With the condition."""
    null: Source
    """Without: as `SamplingConfig.null_lacks` says."""
    grammar: Grammar
    """What is to be written."""
    seed: int
    """Of this sample; it does not depend on its batch mates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """What was written."""

    ids: tuple[int, ...]
    """The new ids, a closing ``<eoss>`` and those that the grammar knew included."""
    drawn: int
    """How many of them were drawn."""
    logprob: float
    """Sum of log p of the ids drawn, nats, by the generator itself: temperature 1, no guidance."""


class _Reader:
    """One stream of B rows: cursors and cache. Equal prompts are read once."""

    def __init__(
        self, model: Generator, layout: Layout, sources: Sequence[Source], capacity: int
    ) -> None:
        self.model, self.layout = model, layout
        self.device = model.tokens.weight.device
        lengths: dict[int, list[Source]] = {}
        for source in dict.fromkeys(sources):
            lengths.setdefault(len(source.ids), []).append(source)
        read = [self._prompts(some) for some in lengths.values()]
        self.cursors = [cursor for cursors, _, _ in read for cursor in cursors]
        self.logits = torch.cat([logits for _, _, logits in read])
        self.cache = Cache.joined([cache for _, cache, _ in read], room=capacity)
        ordered = [source for some in lengths.values() for source in some]
        if ordered != list(sources):
            rows = {source: row for row, source in enumerate(ordered)}
            self._repeat([rows[source] for source in sources])

    def _prompts(self, sources: Sequence[Source]) -> tuple[list[PlaceCursor], Cache, Tensor]:
        """Reads prompts of one length."""
        cursors = [
            PlaceCursor(
                self.layout.places,
                self.layout.vocabulary,
                num_contexts=source.num_contexts,
                resumes=source.resumes,
            )
            for source in sources
        ]
        cache = Cache(
            self.model.config,
            rows=len(sources),
            capacity=len(sources[0].ids),
            device=self.device,
            dtype=self.model.tokens.weight.dtype,
        )
        logits = self._feed(cursors, cache, [source.ids for source in sources])
        return cursors, cache, logits

    def _repeat(self, rows: list[int]) -> None:
        index = torch.tensor(rows)
        self.cache.select(index.to(self.device))
        self.cursors = [self.cursors[row].copy() for row in rows]
        self.logits = self.logits[index]

    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Feeds ids [B][t]; returns the logits of what comes next, float32 [B, V] on the CPU."""
        return self._feed(self.cursors, self.cache, rows)

    def _feed(
        self, cursors: Sequence[PlaceCursor], cache: Cache, rows: Sequence[Sequence[int]]
    ) -> Tensor:
        placed = [cursor.feed(row) for cursor, row in zip(cursors, rows, strict=True)]
        own, following, slots = (
            torch.from_numpy(np.stack(parts)).to(self.device) for parts in zip(*placed, strict=True)
        )
        ids = torch.tensor(rows, dtype=torch.int64, device=self.device)
        keep = torch.zeros_like(ids, dtype=torch.bool)
        keep[:, -1] = True
        logits = self.model(ids, own, following, slots, cache=cache, keep=keep)
        return logits.float().cpu()  # type: ignore[no-any-return]


@torch.no_grad()
def decode(
    model: Generator,
    layout: Layout,
    jobs: Sequence[Job],
    config: SamplingConfig,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Continuation]:
    """Draws every job, in batches of prompts of about the same length.

    Args:
        model: In evaluation mode.
        layout: That the generator was trained with.
        jobs: In any order.
        config: How to draw.
        progress: Called with the number of samples finished since the last call.

    Returns:
        Continuations in the order of the jobs, each allowed by its grammar.
    """
    results: dict[int, Continuation] = {}
    for part in _batches(jobs, config.batch_size):
        written = _Batch(model, layout, [jobs[index] for index in part], config).write()
        results.update(zip(part, written, strict=True))
        if progress is not None:
            progress(len(part))
    return [results[index] for index in range(len(jobs))]


def _batches(jobs: Sequence[Job], size: int) -> Iterator[list[int]]:
    """Indices of jobs decoded together: of one kind; equal prompts stay together where they fit.

    A prompt is then read once for all of its candidates. Prompts come by length, so that rows of
    one batch begin at about the same place.
    """
    kinds: dict[str, dict[tuple[Source, Source], list[int]]] = {}
    for index, job in enumerate(jobs):
        kinds.setdefault(job.grammar.kind, {}).setdefault((job.source, job.null), []).append(index)
    for families in kinds.values():
        batch: list[int] = []
        by_length = sorted(families, key=lambda pair: (len(pair[0].ids), len(pair[1].ids)))
        for family in (families[pair] for pair in by_length):
            if batch and len(batch) + len(family) > size:
                yield batch
                batch = []
            for index in family:
                if len(batch) == size:
                    yield batch
                    batch = []
                batch.append(index)
        yield batch


class _Batch:
    """Rows that are decoded together."""

    def __init__(
        self, model: Generator, layout: Layout, jobs: Sequence[Job], config: SamplingConfig
    ) -> None:
        capacity = max(job.grammar.room for job in jobs) + 1
        self.vocabulary, self.config = layout.vocabulary, config
        self.reader = _Reader(model, layout, [job.source for job in jobs], capacity)
        self.null = (
            _Reader(model, layout, [job.null for job in jobs], capacity)
            if config.needs_null
            else None
        )
        self.noise = [torch.Generator().manual_seed(job.seed) for job in jobs]
        self.grammars = [job.grammar for job in jobs]
        self.ids: list[list[int]] = [[] for _ in jobs]
        self.drawn, self.logprobs = [0] * len(jobs), [0.0] * len(jobs)
        self.masks: dict[tuple[range, ...], Tensor] = {}

    def write(self) -> list[Continuation]:
        """Writes every row to its end."""
        while True:
            known = self._known()
            read = known if known[0] else [[token_id] for token_id in self._draw()]
            for row, ids in enumerate(known):
                self._append(row, ids)
            if all(grammar.done for grammar in self.grammars):
                break
            for stream in (self.reader, self.null):
                if stream is not None:
                    stream.logits = stream.read(read)
        return [
            Continuation(ids=tuple(ids), drawn=drawn, logprob=logprob)
            for ids, drawn, logprob in zip(self.ids, self.drawn, self.logprobs, strict=True)
        ]

    def _known(self) -> list[list[int]]:
        """Ids that all rows know to come next, equally many of each; a row that is done pads."""
        known = [None if grammar.done else grammar.known for grammar in self.grammars]
        count = min(len(ids) for ids in known if ids is not None)
        pad = [self.vocabulary.pad_id] * count
        return [pad if ids is None else list(ids[:count]) for ids in known]

    def _append(self, row: int, ids: Sequence[int]) -> None:
        for token_id in ids:
            if not self.grammars[row].done:
                self.ids[row].append(token_id)
                self.grammars[row] = self.grammars[row].advance(token_id, self.vocabulary)

    def _draw(self) -> list[int]:
        """Writes one id a row; of a row that is done, any id (it is fed and forgotten)."""
        probabilities = self._distribution()
        uniforms = torch.full((len(self.grammars),), 0.5, dtype=torch.float64)
        free = [not (g.done or g.known) for g in self.grammars]
        for row, noise in enumerate(self.noise):
            if free[row]:  # what a row draws depends on its own draws alone
                uniforms[row] = torch.rand((), generator=noise, dtype=torch.float64)
        done = torch.tensor([grammar.done for grammar in self.grammars])
        ids = [int(i) for i in draw(probabilities, uniforms).masked_fill(done, 0).tolist()]
        own = self.reader.logits.log_softmax(-1)
        for row, token_id in enumerate(ids):
            if free[row]:
                self.drawn[row] += 1
                self.logprobs[row] += float(own[row, token_id])
            self._append(row, [token_id])
        return ids

    def _distribution(self) -> Tensor:
        """What each row draws from, float64 [B, V]."""
        config, forbidden = self.config, self._forbidden()
        logits = self.reader.logits.masked_fill(forbidden, -torch.inf)
        if self.null is not None:
            if config.contrastive_k is not None:
                logits = contrast(
                    logits,
                    self.null.logits.masked_fill(forbidden, -torch.inf),
                    k=config.contrastive_k,
                    alpha=config.contrastive_alpha,
                    amateur_temperature=config.amateur_temperature,
                )
            else:
                logits = guide(self.reader.logits, self.null.logits, config.guidance)
                logits = logits.masked_fill(forbidden, -torch.inf)
        if config.repetition_penalty != 1:
            for row, grammar in enumerate(self.grammars):
                if grammar.kind == "text":
                    logits[row] = penalise(logits[row], self.ids[row], config.repetition_penalty)
        return distribution(
            logits, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p
        )

    def _forbidden(self) -> Tensor:
        """Ids that may not come next, bool [B, V]; none for a row that is done."""
        for grammar in self.grammars:
            choices = grammar.choices(self.vocabulary)
            if choices not in self.masks:
                allowed = grammar.allowed(self.vocabulary)
                self.masks[choices] = ~allowed if choices else allowed
        forbidden = torch.stack([self.masks[g.choices(self.vocabulary)] for g in self.grammars])
        if self.config.no_repeat_ngram is not None:
            for row, grammar in enumerate(self.grammars):
                if grammar.kind == "text" and not grammar.done:
                    banned = repeats(self.ids[row], self.config.no_repeat_ngram)
                    forbidden[row, sorted(banned)] = True
        return forbidden
