"""Trains a generator: causal, CM3 or RA-CM3, by config; resumes to the same next batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from pipelines.errors import UsageError
from pipelines.models import (
    load_image_tokenizer,
    load_text_tokenizer,
    pin_threads,
    save_generator,
)
from pipelines.records import context_pool, examples_of, log_table
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.stage import FitOutput, FitStage, Inputs, StageConfig, Workspace
from pipelines.training_events import TrainingEvents
from racm3.document import DocumentTokens
from racm3.sequence.order import asked_order
from racm3.training.draws import DrawRecord
from racm3.training.records import FitConfig, FitResult, LogRow
from racm3.training.stream import Example, StreamConfig
from storage_schemas.tables import TABLES

if TYPE_CHECKING:
    from racm3.generator.transformer import Generator
    from racm3.image_tokenizer.base import ImageTokenizer
    from racm3.sequence.layout import Layout

__all__ = ["Config", "TrainGenerator"]

_DRAWS = "draws.jsonl"


class Config(StageConfig):
    """One generator; `stream` says which of the family it is."""

    layers: int = Field(description="decoder blocks")
    width: int = Field(description="of the residual stream")
    heads: int = Field(description="attention heads")
    ffn: int | None = Field(None, description="width of the feed-forward; none: 4 x width")
    positions: Literal["document", "rope", "sequence"] = "sequence"
    max_length: int = Field(4096, description="longest sequence, tokens")
    tie_embeddings: bool = Field(True, description="the output layer is the embedding")
    induction_start: bool = Field(
        False, description='start as induction over contexts; for positions "document"'
    )
    activation: Literal["gelu", "relu"] = "gelu"
    qk_norm: bool = False
    dropout: float = 0.0
    init_std: float = 0.02
    codebook_start: bool = Field(True, description="image embeddings start from the VQ codebook")
    num_sentinels: int = Field(16, description="spans that one sequence may mask")
    stream: StreamConfig = Field(default_factory=StreamConfig)
    fit: FitConfig
    total_steps: int | None = Field(
        None, description="steps expected under a FLOPs budget, for `stream.k0_fraction`"
    )
    seed: int = 0
    validation_k: int = Field(2, description="contexts at which early stopping measures")
    validation_ks: tuple[int, ...] = Field((0, 1, 2), description="contexts that are logged")
    validation_examples: int | None = Field(None, description="at most so many; none: all")
    loss_bucket: int | None = Field(
        None, ge=1, description="log losses also by position, so many to a bucket; none: do not"
    )
    bf16: bool = Field(False, description="compute in bfloat16")
    workers: int = Field(
        1,
        description="processes of the Ray Train group; no part of the artifact's id: "
        "another number goes on where this one stopped, and differs in rounding only",
    )
    sharding: Literal["none", "fsdp2"] = Field(
        "none", description="fsdp2: each worker holds its share of weights and optimiser"
    )

    def canonical(self) -> dict[str, Any]:
        """Without `workers`, which are what a machine has."""
        return self.model_dump(mode="json", exclude={"workers"})

    @model_validator(mode="after")
    def _rows_for_all(self) -> Self:
        shares = max(1, self.workers) * self.fit.accumulate
        if self.stream.batch_size % max(1, self.workers) or self.stream.batch_size < shares:
            raise ValueError(
                f"stream.batch_size {self.stream.batch_size} cannot be dealt to {self.workers} "
                f"workers in fit.accumulate {self.fit.accumulate} micro-batches: "
                "make it a multiple of workers, with a row for each micro-batch"
            )
        return self


class TrainGenerator(FitStage[Config]):
    """`generator` from `train` and `validation` examples; evaluation examples are refused."""

    name = "train_generator"
    version = 1
    kind = "generator"
    config_type = Config
    gpu: ClassVar[bool] = True

    def workers(self, config: Config) -> int:
        """Always under Ray Train where there is Ray."""
        return config.workers

    def fit(
        self, config: Config, inputs: Inputs, reader: Reader, workspace: Workspace
    ) -> FitOutput:
        """Fits until the steps, the FLOPs budget or the patience are used up.

        Raises:
            UsageError: when an input holds evaluation examples, or none at all.
        """
        from racm3.training.fit import fit

        pin_threads(workspace.threads)
        train = _read(reader, inputs["train"], "train")
        validation = _read(reader, inputs["validation"], "validation")
        layout, images = _layout(config, inputs, reader)
        model = _model(config, layout, images)
        draws = _Draws(workspace.progress / _DRAWS, active=workspace.rank == 0)
        held_out = validation[: config.validation_examples]
        pool = context_pool(inputs["train"], train)
        with TrainingEvents(workspace.events) as events:
            result = fit(
                _task(config, model, train, layout, draws),
                config.fit,
                checkpoint_dir=workspace.progress / "checkpoints",
                validate=_validation(config, held_out, pool, layout),
                report=_reporter(config.fit, workspace, events),
                wrap=_wrap(config, workspace),
                after_checkpoint=_after_checkpoint(workspace),
                rank=workspace.rank,
                world_size=workspace.world_size,
            )
        if workspace.rank:
            return FitOutput()
        return FitOutput(
            files=save_generator(workspace.staging, model, layout),
            tables={
                "training_log": log_table(result.log),
                "training_batches": draws.table(result.steps),
            },
            rows_in=len(train),
            rows_out=len(train),
            facts=_facts(result, model) | {"workers": workspace.world_size},
        )


def _read(reader: Reader, selection: Selection, role: str) -> list[Example]:
    shards = selection.tables("examples")
    wrong = {s.tags.get("role", "") for s in shards} - {role}
    if wrong or not shards:
        raise UsageError(
            f"train_generator: input {role} holds {sorted(wrong) or 'no'} examples; "
            f"it reads only role {role}"
        )
    return examples_of(reader.tables(shards))


def _layout(config: Config, inputs: Inputs, reader: Reader) -> tuple[Layout, ImageTokenizer]:
    from racm3.sequence.layout import Layout
    from racm3.vocabulary import Vocabulary

    text = load_text_tokenizer(reader.files(inputs["text_tokenizer"]))
    images = load_image_tokenizer(reader.files(inputs["image_tokenizer"]))
    vocabulary = Vocabulary(
        text_size=text.vocab_size,
        image_size=images.codebook_size,
        num_sentinels=config.num_sentinels,
    )
    layout = Layout(
        vocabulary=vocabulary,
        image_tokens=images.grid[0] * images.grid[1],
        max_text_tokens=config.stream.max_text_tokens,
    )
    return layout, images


def _model(config: Config, layout: Layout, images: ImageTokenizer) -> Generator:
    import torch

    from pipelines.models import device
    from racm3.generator.config import GeneratorConfig
    from racm3.generator.induction_start import start_image_embeddings, start_induction
    from racm3.generator.transformer import Generator

    shape = GeneratorConfig(
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        ffn=config.ffn,
        max_length=config.max_length,
        positions=config.positions,
        num_places=layout.places.size if config.positions == "document" else 0,
        num_slots=config.stream.max_k + 1,
        tie_embeddings=config.tie_embeddings,
        activation=config.activation,
        qk_norm=config.qk_norm,
        dropout=config.dropout,
        init_std=config.init_std,
    )
    codebook = images.code_vectors.detach().cpu()
    random = torch.Generator().manual_seed(config.seed)
    model = Generator(shape, layout.vocabulary, generator=random)
    if config.induction_start:
        start_induction(model, layout.places, images.grid, codebook, generator=random)
    elif config.codebook_start:
        start_image_embeddings(model, codebook, generator=random)
    return model.to(device())


def _task(
    config: Config, model: Generator, train: list[Example], layout: Layout, draws: _Draws
) -> Any:
    import torch

    from racm3.training.generator import GeneratorTask

    return GeneratorTask(
        model,
        train,
        layout=layout,
        config=config.stream,
        seed=config.seed,
        total_steps=config.fit.steps or config.total_steps,
        autocast=torch.bfloat16 if config.bf16 else None,
        on_draw=draws.add,
        bucket_width=config.loss_bucket,
    )


def _validation(
    config: Config, examples: list[Example], pool: list[DocumentTokens], layout: Layout
) -> Any:
    from racm3.training.generator import Validation

    return Validation(
        examples=examples,
        layout=layout,
        ks=config.validation_ks,
        loss_k=config.validation_k,
        order=asked_order(config.stream.context_order),
        pool=pool,
        seed=config.seed,
    )


def _wrap(config: Config, workspace: Workspace) -> Callable[[Any], Any] | None:
    """What `fit` trains in place of the bare model: DDP or FSDP2; None: nobody to share with."""
    if config.sharding == "none" or workspace.wrap is None:
        return workspace.wrap
    import torch

    from racm3.training.sharding import shard_blocks

    return partial(shard_blocks, dtype=torch.bfloat16 if config.bf16 else None)


def _reporter(fit: FitConfig, workspace: Workspace, events: TrainingEvents) -> Any:
    total = fit.flops_budget or float(fit.steps or 1)

    def report(row: LogRow) -> None:
        events.add(row)
        done = row.flops if fit.flops_budget else float(row.step)
        loss = row.metrics.get("loss", float("nan"))
        share = min(1000, int(1000 * done / total))
        workspace.report(share, 1000, f"step {row.step}, {row.split} loss {loss:.3f}")

    return report


def _after_checkpoint(workspace: Workspace) -> Callable[[int, Path], None] | None:
    tell = workspace.after_checkpoint
    return None if tell is None else lambda step, _: tell(step)


def _facts(result: FitResult, model: Generator) -> dict[str, Any]:
    return {
        "best_step": result.best_step,
        "steps": result.steps,
        "training_flops": result.flops,
        "training_tokens": result.tokens,
        "stopped_by": result.stopped,
        "validation_loss": result.best_loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


class _Draws:
    """What each step was shown, kept on disk so that a resumed run can tell the whole story."""

    def __init__(self, path: Path, *, active: bool) -> None:
        self._path, self._active = path, active

    def add(self, record: DrawRecord) -> None:
        """Notes one step; a step that is done again after a kill is noted again, equal."""
        if self._active:
            k = max((len(row.context_ids) for row in record.rows), default=0)
            line = json.dumps([record.step, k, record.batch_digest])
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def table(self, steps: int) -> pa.Table:
        """The steps that count, each once."""
        rows = {step: (k, digest) for step, k, digest in self._lines() if step < steps}
        return pa.table(
            {
                "step": pa.array(list(rows), pa.int64()),
                "k": pa.array([k for k, _ in rows.values()], pa.int32()),
                "batch_digest": pa.array([digest for _, digest in rows.values()], pa.string()),
            },
            schema=TABLES["training_batches"].arrow,
        )

    def _lines(self) -> Iterable[tuple[int, int, str]]:
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                step, k, digest = json.loads(line)
            except ValueError:
                continue  # torn by a kill; that step was done again and noted again
            yield step, k, digest
