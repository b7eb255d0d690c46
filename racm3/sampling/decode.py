"""Batched decoding with a cache: prompts of equal lengths together, each with its own randomness.

A prompt that stands in a batch more than once (candidates, samples, the null prompt of many) is
read once, and what the cache holds of it is repeated.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from racm3.generator.cache import Cache
from racm3.generator.transformer import Generator
from racm3.sampling.grammar import Grammar
from racm3.sampling.logits import contrast, distribution, draw, guide
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
        for name in ("top_k", "contrastive_k", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"SamplingConfig.{name} must be at least 1.")
        if self.contrastive_k is not None and self.guidance != 1:
            raise ValueError("SamplingConfig: use guidance or contrastive_k, not both.")

    @property
    def needs_null(self) -> bool:
        """Whether the prompt without its condition is read too."""
        return self.guidance != 1 or self.contrastive_k is not None


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
    """The new ids, a closing ``<eoss>`` included."""
    logprob: float
    """Sum of log p of these ids, nats, by the generator itself: temperature 1, no guidance."""


class _Reader:
    """One stream of B rows of equal length: cursors and cache. Equal rows are read once."""

    def __init__(
        self, model: Generator, layout: Layout, sources: Sequence[Source], capacity: int
    ) -> None:
        weight = model.tokens.weight
        self.model = model
        self.device = weight.device
        rows = {source: row for row, source in enumerate(dict.fromkeys(sources))}
        self.cursors = [
            PlaceCursor(
                layout.places,
                layout.vocabulary,
                num_contexts=source.num_contexts,
                resumes=source.resumes,
            )
            for source in rows
        ]
        length = len(sources[0].ids)
        self.cache = Cache(
            model.config,
            rows=len(rows),
            capacity=length + capacity,
            device=self.device,
            dtype=weight.dtype,
        )
        self.logits = self.read([source.ids for source in rows])
        if len(rows) < len(sources):
            self._repeat([rows[source] for source in sources])

    def _repeat(self, rows: list[int]) -> None:
        index = torch.tensor(rows)
        self.cache.select(index.to(self.device))
        self.cursors = [self.cursors[row].copy() for row in rows]
        self.logits = self.logits[index]

    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Feeds ids [B][t]; returns the logits of what comes next, float32 [B, V] on the CPU."""
        placed = [cursor.feed(row) for cursor, row in zip(self.cursors, rows, strict=True)]
        own, following, slots = (
            torch.from_numpy(np.stack(parts)).to(self.device) for parts in zip(*placed, strict=True)
        )
        ids = torch.tensor(rows, dtype=torch.int64, device=self.device)
        keep = torch.zeros_like(ids, dtype=torch.bool)
        keep[:, -1] = True
        logits = self.model(ids, own, following, slots, cache=self.cache, keep=keep)
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
    """Draws every job, in batches of equal prompt lengths.

    Args:
        model: In evaluation mode.
        layout: That the generator was trained with.
        jobs: In any order.
        config: How to draw.
        progress: Called with the number of samples finished since the last call.

    Returns:
        Continuations in the order of the jobs, each allowed by its grammar.
    """
    groups: dict[tuple[int, int, str], list[int]] = {}
    for index, job in enumerate(jobs):
        key = (len(job.source.ids), len(job.null.ids), job.grammar.kind)
        groups.setdefault(key, []).append(index)
    results: dict[int, Continuation] = {}
    for indices in groups.values():
        for start in range(0, len(indices), config.batch_size):
            part = indices[start : start + config.batch_size]
            written = _decode_together(model, layout, [jobs[i] for i in part], config)
            results.update(zip(part, written, strict=True))
            if progress is not None:
                progress(len(part))
    return [results[index] for index in range(len(jobs))]


def _decode_together(
    model: Generator, layout: Layout, jobs: Sequence[Job], config: SamplingConfig
) -> list[Continuation]:
    vocabulary = layout.vocabulary
    capacity = max(job.grammar.room for job in jobs) + 1
    reader = _Reader(model, layout, [job.source for job in jobs], capacity)
    null = (
        _Reader(model, layout, [job.null for job in jobs], capacity) if config.needs_null else None
    )
    noise = [torch.Generator().manual_seed(job.seed) for job in jobs]
    grammars = [job.grammar for job in jobs]
    ids: list[list[int]] = [[] for _ in jobs]
    logprobs = [0.0] * len(jobs)
    masks: dict[Grammar, Tensor] = {}
    while True:
        for grammar in set(grammars) - masks.keys():
            masks[grammar] = grammar.allowed(vocabulary)
        drawn = _draw(
            reader, null, [masks[g] for g in grammars], noise, config=config, grammars=grammars
        )
        own = reader.logits.log_softmax(-1)
        for row, token_id in enumerate(drawn):
            if not grammars[row].done:
                ids[row].append(token_id)
                logprobs[row] += float(own[row, token_id])
                grammars[row] = grammars[row].advance(token_id, vocabulary)
        if all(grammar.done for grammar in grammars):
            break
        for stream in (reader, null):
            if stream is not None:
                stream.logits = stream.read([[token_id] for token_id in drawn])
    return [
        Continuation(ids=tuple(row), logprob=logprob)
        for row, logprob in zip(ids, logprobs, strict=True)
    ]


def _draw(
    reader: _Reader,
    null: _Reader | None,
    masks: list[Tensor],
    noise: list[torch.Generator],
    *,
    config: SamplingConfig,
    grammars: list[Grammar],
) -> list[int]:
    """One id a row; of a row that is done, any id (it is fed and forgotten)."""
    done = torch.tensor([grammar.done for grammar in grammars])
    forbidden = ~torch.stack(masks) & ~done[:, None]
    logits = reader.logits.masked_fill(forbidden, -torch.inf)
    if null is not None:
        if config.contrastive_k is not None:
            logits = contrast(
                logits,
                null.logits.masked_fill(forbidden, -torch.inf),
                k=config.contrastive_k,
                alpha=config.contrastive_alpha,
                amateur_temperature=config.amateur_temperature,
            )
        else:
            logits = guide(reader.logits, null.logits, config.guidance)
            logits = logits.masked_fill(forbidden, -torch.inf)
    probabilities = distribution(
        logits, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p
    )
    uniforms = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in noise])
    ids = draw(probabilities, uniforms)
    return [int(i) for i in ids.masked_fill(done, 0).tolist()]
