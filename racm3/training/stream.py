"""The stream of batches: what is drawn for a step is a pure function of (seed, step, row).

Row r of the *global* batch of a step draws from a Philox generator keyed by (seed, purpose, step,
r), so a batch does not depend on what was drawn before it, nor on the number of ranks: rank q of n
assembles rows q, q+n, q+2n, ... Resuming needs the step and nothing else.

Order: row r of step s is position s * batch_size + r of the endless stream of epochs
(`racm3.training.epoch_order`), so a batch may straddle two epochs and no example is left over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Series
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from racm3.document import DocumentTokens
from racm3.objective.masking import hidden, mask, to_row
from racm3.objective.noise import read_with_noise
from racm3.objective.spans import SpanDraw, SpanMixConfig, draw_sampler, draw_spans
from racm3.sequence.batch import Batch, Row, ids_read
from racm3.sequence.layout import Layout, lay_out
from racm3.sequence.order import ContextOrder, context_order
from racm3.training.draws import DrawRecord, Query, RowRecord
from racm3.training.episodes import EpisodeSources, as_episode, kinds_of
from racm3.training.epoch_order import EpochOrder, keyed_generator
from racm3.training.examples import Example

_BATCH_PURPOSE, _ROW_PURPOSE = 1, 2
_TEXT_ASKS = {"none": 1.0, "whole_image": 1.0, "image_span": 1.0, "whole_caption": 0.0}
"""How often the text is the query under `query_follows_task`, by what is masked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """How batches are drawn. Vanilla CM3 is `max_k=0`; a DALL-E-like model `objective="causal"`.

    Raises:
        ValueError: when a value is out of range.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    batch_size: int = 32
    """Examples a step, over all ranks."""

    objective: Literal["cm3", "causal"] = "cm3"
    """`causal` masks nothing."""

    alpha: float = 0.1
    """Weight of labels in contexts (RA-CM3: 0.1; CM3Leon in effect 1)."""

    max_k: int = 2
    """K ~ Uniform{0..max_k}; an example with fewer contexts gets what it has."""

    k_per_batch: bool = True
    """True: one K a step, so that rows are of one length. False: one K an example (paper)."""

    k0_fraction: float = 0.0
    """First share of the steps that is without contexts."""

    context_order: ContextOrder = "shuffled"
    """Order of the contexts in front of the main document; the code base shuffles."""

    query_probability_text: float = 0.5
    """How often the text is the query; the image otherwise. A missing side yields to the other."""

    query_follows_task: bool = False
    """True: where one side is to be predicted whole, the other is the query, as when it is asked
    for. A coin (paper) finds contexts by a caption that is masked, so that they tell it."""

    spans: SpanMixConfig = field(default_factory=SpanMixConfig)
    """What is masked under `cm3`."""

    caption_dropout: float = 0.0
    """Under `causal`: share of rows whose main caption is hidden and not learned, so that guidance
    has a null prompt (DALL-E-like models do likewise). CM3 learns one by masking captions."""

    episodes: float = 0.0
    """Share of the rows that read contexts which are episodes (`racm3.training.episodes`)."""

    episode_sources: EpisodeSources = "any"
    """Contexts of an episode are of these sources: any, or others than the main document's."""

    image_noise: float = 0.0
    """Share of the main document's codes that are read as random ones (`objective.noise`)."""

    max_text_tokens: int = 32
    """Captions are cut to this: `Layout.max_text_tokens` must be the same."""

    max_length: int = 4096
    """Most inputs a row may have. Contexts that do not fit beside the tokens that masking adds are
    left out, least relevant first; nothing is ever cut in the middle."""

    pack_length: int | None = None
    """Pack a step's samples into rows of so many positions, >= max_length; None: one a row."""

    group_weights: dict[str, float] = field(default_factory=dict)
    """How often examples of a group are seen, 1 being once an epoch."""

    def __post_init__(self) -> None:
        checks = {
            "batch_size >= 1": self.batch_size >= 1,
            "objective is cm3 or causal": self.objective in ("cm3", "causal"),
            "alpha is finite and >= 0": math.isfinite(self.alpha) and self.alpha >= 0,
            "max_k >= 0": self.max_k >= 0,
            "0 <= k0_fraction <= 1": 0 <= self.k0_fraction <= 1,
            "0 <= query_probability_text <= 1": 0 <= self.query_probability_text <= 1,
            "0 <= image_noise <= 1": 0 <= self.image_noise <= 1,
            "0 <= episodes <= 1": 0 <= self.episodes <= 1,
            "episode_sources is any or others": self.episode_sources in ("any", "others"),
            "episodes only with max_k >= 1": not self.episodes or self.max_k >= 1,
            "0 <= caption_dropout < 1": 0 <= self.caption_dropout < 1,
            "caption_dropout only under objective causal": not self.caption_dropout
            or self.objective == "causal",
            "max_text_tokens >= 1": self.max_text_tokens >= 1,
            "pack_length >= max_length": self.pack_length is None
            or self.pack_length >= self.max_length,
            "group_weights are finite and >= 0": all(
                math.isfinite(weight) and weight >= 0 for weight in self.group_weights.values()
            ),
        }
        broken = [rule for rule, holds in checks.items() if not holds]
        if broken:
            raise ValueError(f"StreamConfig needs {', '.join(broken)}")

    @property
    def most_spans(self) -> int:
        """Most spans of any row."""
        return self.spans.most_spans if self.objective == "cm3" else int(self.caption_dropout > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Contexts:
    """The contexts of one row, in the order fed."""

    tokens: tuple[DocumentTokens, ...] = ()
    ids: tuple[str, ...] = ()
    query: Query | None = None
    draw: int | None = None
    left_out: int = 0


def draw_batch(
    examples: Series[Example],
    *,
    layout: Layout,
    config: StreamConfig,
    seed: int,
    step: int,
    rank: int = 0,
    world_size: int = 1,
    total_steps: int | None = None,
    part: int = 0,
    parts: int = 1,
) -> tuple[Batch, DrawRecord]:
    """The batch of a step and what was drawn for it.

    Args:
        examples: what is trained on; only the drawn ones are looked at (with `group_weights`, the
            group of each).
        layout: how they are laid out.
        config: how they are drawn.
        seed: 0 or above; another seed is another stream.
        step: from 0.
        rank: which rank's rows.
        world_size: number of ranks; must divide `config.batch_size`.
        total_steps: of the whole run; needed when `config.k0_fraction` is not 0.
        part: which of the parts, from 0.
        parts: how many parts a rank's rows are read in, in their order; sizes differ by at most
            one, and a row is the same in whichever part.

    Raises:
        ValueError: when config, layout and examples do not fit together, or there are fewer rows
            than parts.
    """
    _check(examples, layout, config, rank, world_size)
    mine = range(rank, config.batch_size, world_size)
    if not 0 <= part < parts <= len(mine):
        raise ValueError(f"{len(mine)} rows of a rank and step have no part {part} of {parts}")
    order = _order(examples, config, seed)
    k = _batch_k(config, seed, step, total_steps)
    kinds = kinds_of(examples) if config.episodes else {}
    rows: list[Row] = []
    records: list[RowRecord] = []
    for row in mine[len(mine) * part // parts : len(mine) * (part + 1) // parts]:
        epoch, index = order.locate(step * config.batch_size + row)
        generator = keyed_generator(seed, _ROW_PURPOSE, step, row)
        row_k = k if k is not None else int(generator.integers(config.max_k + 1))
        example, episode = examples[index], None
        if config.episodes and row_k and generator.random() < config.episodes:
            episode = as_episode(
                example,
                row_k,
                examples,
                kinds,
                layout.vocabulary,
                generator,
                sources=config.episode_sources,
            )
        fed, record = _draw_row(
            episode or example,
            layout,
            config,
            generator,
            epoch=epoch,
            k=row_k,
            is_episode=episode is not None,
        )
        rows.append(fed)
        records.append(record)
    record_of_step = DrawRecord(
        seed=seed, step=step, rank=rank, world_size=world_size, rows=tuple(records)
    )
    pad_id = layout.vocabulary.pad_id
    if config.pack_length:
        return Batch.packed(rows, length=config.pack_length, pad_id=pad_id), record_of_step
    return Batch.of_rows(rows, pad_id=pad_id), record_of_step


def epoch_length(examples: Series[Example], config: StreamConfig) -> int:
    """Number of rows in an epoch: the same for every epoch.

    Raises:
        ValueError: when a weighted group has no example, or all weights are 0.
    """
    return _order(examples, config, 0).length


def _order(examples: Series[Example], config: StreamConfig, seed: int) -> EpochOrder:
    groups = [example.group for example in examples] if config.group_weights else ()
    return EpochOrder(groups, config.group_weights, size=len(examples), seed=seed)


def _check(
    examples: Series[Example], layout: Layout, config: StreamConfig, rank: int, world_size: int
) -> None:
    if not len(examples):
        raise ValueError("there is no example to draw from")
    if not 0 <= rank < world_size or config.batch_size % world_size:
        raise ValueError(
            f"rank {rank} of {world_size} cannot draw a batch of {config.batch_size}: the number "
            "of ranks must divide batch_size, and rank be below it"
        )
    if layout.max_text_tokens != config.max_text_tokens:
        raise ValueError(
            f"max_text_tokens is {layout.max_text_tokens} in the layout and "
            f"{config.max_text_tokens} in StreamConfig: give both the same"
        )
    if config.most_spans > layout.vocabulary.num_sentinels:
        raise ValueError(
            f"spans.max_masks is {config.most_spans}, but the vocabulary has only "
            f"{layout.vocabulary.num_sentinels} sentinels"
        )
    needed = config.max_text_tokens + layout.image_tokens + 2 + 3 * config.most_spans
    if needed > config.max_length:
        raise ValueError(
            f"max_length {config.max_length} cannot hold one document and its masks: raise it to "
            f"{needed} at least, or lower max_text_tokens or spans.max_masks"
        )


def _batch_k(config: StreamConfig, seed: int, step: int, total_steps: int | None) -> int | None:
    """K of all rows of a step; None where each row draws its own."""
    if config.k0_fraction:
        if total_steps is None:
            raise ValueError("k0_fraction needs total_steps, the length of the run")
        if step < config.k0_fraction * total_steps:
            return 0
    if not config.k_per_batch:
        return None
    return int(keyed_generator(seed, _BATCH_PURPOSE, step).integers(config.max_k + 1))


def _draw_row(
    example: Example,
    layout: Layout,
    config: StreamConfig,
    generator: np.random.Generator,
    *,
    epoch: int,
    k: int,
    is_episode: bool,
) -> tuple[Row, RowRecord]:
    sampler, text = "none" if is_episode else None, config.query_probability_text
    if config.query_follows_task and not is_episode:
        sampler = draw_sampler(config.spans, generator)
        text = _TEXT_ASKS.get(sampler, text)
    contexts = _draw_contexts(example, k, layout, config, generator, text=text)
    sequence = lay_out(example.main, contexts.tokens, layout)
    masking = SpanDraw(sampler="none", spans=())
    if config.objective == "cm3":
        masking = draw_spans(sequence, config.spans, generator, sampler=sampler)
    unlearned = config.caption_dropout and generator.random() < config.caption_dropout
    if unlearned:
        masking = draw_spans(sequence, config.spans, generator, sampler="whole_caption")
    row = to_row(
        sequence, mask(sequence, masking.spans, layout.vocabulary), layout, alpha=config.alpha
    )
    if unlearned:
        row = hidden(row, masking.spans)
    if config.image_noise:
        codes = layout.vocabulary.image_range
        row = read_with_noise(row, config.image_noise, codes, generator)
    record = RowRecord(
        example_id=example.example_id,
        epoch=epoch,
        query=None if is_episode else contexts.query,
        draw=None if is_episode else contexts.draw,
        context_ids=contexts.ids,
        contexts_left_out=contexts.left_out,
        cut_text_tokens=sequence.cut_text_tokens,
        masking=masking,
        ids_read=ids_read(row),
    )
    return row, record


def _draw_contexts(
    example: Example,
    k: int,
    layout: Layout,
    config: StreamConfig,
    generator: np.random.Generator,
    *,
    text: float,
) -> _Contexts:
    """Draws query (`text`: how often that) and order; keeps the k best, as far as there is room."""
    wanted: Query = "text" if generator.random() < text else "image"
    drawn = generator.random()
    if k == 0 or not example.queries:
        return _Contexts()
    candidates = [q for q in example.queries if q.query == wanted] or list(example.queries)
    chosen = candidates[int(drawn * len(candidates))]
    room = config.max_length - layout.document_length(example.main) - 3 * config.most_spans
    lengths = np.cumsum([layout.document_length(c) for c in chosen.contexts[:k]])
    kept = int(np.searchsorted(lengths, room, side="right"))
    order = context_order(kept, config.context_order, generator)
    return _Contexts(
        tokens=tuple(chosen.contexts[i] for i in order),
        ids=tuple(chosen.document_ids[i] for i in order),
        query=chosen.query,
        draw=chosen.draw,
        left_out=len(lengths) - kept,
    )
