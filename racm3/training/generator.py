"""Fits the generator: what `fit` needs of it, and how it is validated while it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from racm3.document import DocumentTokens
from racm3.generator.flops import training_flops
from racm3.generator.transformer import Generator
from racm3.objective.loss import PositionBuckets, row_nll, weighted_loss
from racm3.sequence.batch import Batch
from racm3.sequence.layout import Layout
from racm3.sequence.order import ContextOrder
from racm3.training.draws import DrawRecord, whole_step
from racm3.training.evaluation import evaluation_batch
from racm3.training.examples import Example
from racm3.training.ranks import gather_on_rank_zero, sum_over_ranks
from racm3.training.records import StepExamples
from racm3.training.stream import StreamConfig, draw_batch
from racm3.training.tallies import Metric

_WRONG_PURPOSE = 0x77_726F


def kept(batch: Batch) -> tuple[Tensor, Batch]:
    """Leaves out the labels of weight 0, whose logits nobody needs.

    Returns:
        bool [B, T] of the positions that stay, and the batch of their n labels as one row [1, n].
    """
    keep = batch.weights > 0
    return keep, batch.each(lambda tensor: tensor[keep][None])


class GeneratorTask:
    """The `FitTask` of a causal, CM3 or RA-CM3 generator: the stream's config tells them apart."""

    def __init__(
        self,
        model: Generator,
        examples: Sequence[Example],
        *,
        layout: Layout,
        config: StreamConfig,
        seed: int,
        total_steps: int | None = None,
        autocast: torch.dtype | None = None,
        on_draw: Callable[[DrawRecord], None] | None = None,
        bucket_width: int | None = None,
    ) -> None:
        """Takes the model as it is.

        Args:
            model: Trained; on the device that batches are moved to.
            examples: Training examples.
            layout: Of every sequence.
            config: How batches are drawn; `alpha`, `max_k` and the spans are in it.
            seed: Of the stream.
            total_steps: Of the run, for `config.k0_fraction`; with a FLOPs budget an estimate.
            autocast: ``torch.bfloat16`` to compute in it; `None` = in float32.
            on_draw: Sees what was drawn for each step, by all ranks; called on rank 0. Give one to
                every rank, or to none.
            bucket_width: Log losses also by the position in the sample, so many positions to a
                bucket; `None` = all positions together.
        """
        self.model: nn.Module = model
        self._generator, self._examples, self._layout = model, examples, layout
        self._config, self._seed, self._total_steps = config, seed, total_steps
        self._autocast, self._on_draw = autocast, on_draw
        self._buckets = (
            None
            if bucket_width is None
            else PositionBuckets.covering(config.max_length, width=bucket_width)
        )
        self._flops = 0.0

    def loss(self, step: int, *, rank: int, world_size: int) -> tuple[Tensor, dict[str, Metric]]:
        """Returns L_main + alpha L_contexts of the batch of (seed, step, rank).

        Per main label of the whole step: averaged over ranks, the gradient is that of one rank that
        reads all rows.
        """
        (loss,) = self.micro_losses(step, rank=rank, world_size=world_size, parts=1)
        return loss

    def micro_losses(
        self, step: int, *, rank: int, world_size: int, parts: int
    ) -> Iterator[tuple[Tensor, dict[str, Metric]]]:
        """Yields what adds up to `loss`: the same rows, in `parts` batches one after another.

        Raises:
            ValueError: There are fewer rows than parts.
        """
        drawn = [
            self._draw(step, rank=rank, world_size=world_size, part=part, parts=parts)
            for part in range(parts)
        ]
        if self._on_draw is not None:
            records = [record for _, record in drawn]
            of_ranks = gather_on_rank_zero(records, rank=rank, world_size=world_size)
            if of_ranks is not None:
                self._on_draw(whole_step(of_ranks))
        device = next(self.model.parameters()).device
        (labels,) = sum_over_ranks(
            [float(sum(batch.num_main_tokens for batch, _ in drawn))],
            world_size=world_size,
            device=device,
        )
        denominator = torch.tensor(max(labels, 1.0) / world_size, device=device)
        self._flops = 0.0
        for batch, _ in drawn:
            loss, numbers = self._part(batch.to(device), denominator)
            yield loss, {**numbers, "loss": loss.item() * parts}

    def examples_of(self, step: int) -> StepExamples:
        """See `HasExamples`."""
        _, record = self._draw(step)
        return StepExamples(record.batch_digest, tuple(row.example_id for row in record.rows))

    def _draw(self, step: int, **dealt: int) -> tuple[Batch, DrawRecord]:
        return draw_batch(
            self._examples,
            layout=self._layout,
            config=self._config,
            seed=self._seed,
            step=step,
            total_steps=self._total_steps,
            **dealt,
        )

    def _part(self, batch: Batch, denominator: Tensor) -> tuple[Tensor, dict[str, Metric]]:
        """Loss of some rows, as a share of the step's, and what to log of them."""
        device = batch.input_ids.device
        keep, labels = kept(batch)
        with torch.autocast(device.type, self._autocast, enabled=self._autocast is not None):
            logits = self.model(
                *(batch.input_ids, batch.places, batch.next_places, batch.slots),
                keep=keep,
                samples=batch.samples,
            )
        parts = weighted_loss(logits[None], labels, denominator=denominator, buckets=self._buckets)
        rows, length = batch.input_ids.shape
        self._flops += training_flops(
            self._generator.config,
            rows=rows,
            length=length,
            predictions=labels.labels.numel(),
            vocabulary_size=self._layout.vocabulary.size,
            attended=None if batch.samples is None else batch.samples.squares,
        )
        numbers: dict[str, Metric] = {"tokens": float(rows * length)}
        if batch.samples is not None:
            numbers["padding"] = (float(len(batch.samples.padding)), float(rows * length))
        return parts.loss, numbers | parts.tallies()

    def step_flops(self, step: int) -> float:
        """Returns the FLOPs of the step whose loss was computed last."""
        del step
        return self._flops


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Held-out perplexities; give it to `fit` as `validate`.

    It returns ``image_ppl_k{k}`` and ``caption_ppl_k{k}`` for each k, ``..._wrong`` with as many
    documents of `pool` drawn at random as `loss_k`, and ``loss``: mean NLL in nats of all measured
    tokens, image and caption, at `loss_k`.
    """

    examples: Sequence[Example]
    """Validation examples."""
    layout: Layout
    """Of the sequences."""
    ks: tuple[int, ...] = (0, 1, 2)
    """Numbers of contexts that are measured."""
    loss_k: int = 2
    """The k that early stopping reads: 2 for RA-CM3, 0 for a generator without contexts."""
    pool: Sequence[DocumentTokens] = ()
    """Documents that wrong contexts are drawn from; empty leaves the rows out."""
    order: ContextOrder = "best_first"
    """Of the contexts."""
    seed: int = 0
    """Of the wrong contexts, and of shuffled ones."""
    batch_size: int = 32
    """Rows of one forward pass."""

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Measures a `Generator` as it is."""
        numbers: dict[str, float] = {}
        total, count = 0.0, 0.0
        for k in sorted({*self.ks, self.loss_k}):
            for task in ("image", "caption"):
                nll, tokens = self._measure(model, task, k, None)
                numbers[f"{task}_ppl_k{k}"] = math.exp(nll / tokens)
                if k == self.loss_k:
                    total, count = total + nll, count + tokens
        if self.pool and self.loss_k:
            wrong = self._wrong_contexts()
            for task in ("image", "caption"):
                nll, tokens = self._measure(model, task, self.loss_k, wrong)
                numbers[f"{task}_ppl_wrong"] = math.exp(nll / tokens)
        return {"loss": total / count, **numbers}

    def _wrong_contexts(self) -> list[list[DocumentTokens]]:
        draw = np.random.Generator(
            np.random.Philox(np.random.SeedSequence((_WRONG_PURPOSE, self.seed)))
        )
        rows = draw.integers(0, len(self.pool), (len(self.examples), self.loss_k)).tolist()
        return [[self.pool[i] for i in row] for row in rows]

    def _measure(
        self, model: nn.Module, task: str, k: int, contexts: list[list[DocumentTokens]] | None
    ) -> tuple[float, float]:
        nll, tokens = 0.0, 0.0
        for start in range(0, len(self.examples), self.batch_size):
            part = slice(start, start + self.batch_size)
            batch = evaluation_batch(
                self.examples[part],
                layout=self.layout,
                task="image" if task == "image" else "caption",
                k=k,
                contexts=None if contexts is None else contexts[part],
                order=self.order,
                seed=self.seed,
            )
            sums, counts = measured_nll(model, batch)
            nll, tokens = nll + float(sums.sum()), tokens + float(counts.sum())
        if not tokens:
            raise ValueError(f"The validation examples have no {task} token to measure.")
        return nll, tokens


@torch.no_grad()
def measured_nll(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sums of NLL in nats and numbers of measured tokens of each row, float64 [B], on the CPU."""
    device = next(model.parameters()).device
    batch = batch.to(device)
    keep, labels = kept(batch)
    logits = model(batch.input_ids, batch.places, batch.next_places, batch.slots, keep=keep)
    single = labels.each(lambda tensor: tensor[0][:, None])
    nll, _ = row_nll(logits[:, None], single)
    row_of = keep.nonzero()[:, 0]
    sums = torch.zeros(len(keep), dtype=torch.float64, device=device)
    return sums.index_add(0, row_of, nll.double()).cpu(), keep.sum(dim=1).double().cpu()
