"""Trains a generator: causal, CM3 or RA-CM3, by config; resumes to the same next batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipelines.draw_log import DrawLog
from pipelines.errors import UsageError
from pipelines.made_with import check_together
from pipelines.models import (
    load_generator,
    load_image_tokenizer,
    load_text_tokenizer,
    pin_threads,
    save_generator,
)
from pipelines.records import context_pool, log_table
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import FitOutput, FitStage, Inputs, StageConfig, Workspace
from pipelines.training_events import TrainingEvents
from pipelines.training_examples import check_episodes, read_training_examples
from racm3.document import DocumentTokens
from racm3.generator.config import SIZES, GeneratorConfig, SizeName
from racm3.generator.initial_weights import InitConfig
from racm3.sequence.order import asked_order
from racm3.training.examples import Example
from racm3.training.records import FitConfig, FitResult, LogRow
from racm3.training.stream import StreamConfig

if TYPE_CHECKING:
    from racm3.generator.transformer import Generator
    from racm3.image_tokenizer.base import ImageTokenizer
    from racm3.sequence.layout import Layout

__all__ = ["Config", "TrainGenerator"]

_DRAWS = "draws.jsonl"

_OF_SIZE = (
    *("layers", "width", "heads", "ffn", "max_length", "activation", "qk_norm", "init_std"),
)
"""What a size says, unless it is given."""


class Config(StageConfig):
    """One generator; `stream` says which of the family it is.

    Its shape is a named `size`, or numbers; a number that is given wins over the size's.
    """

    later: ClassVar[Mapping[str, Any]] = {
        "context_slots": True,
        "stream.episodes": 0.0,
        "stream.episode_sources": "any",
    }

    size: SizeName | None = Field(None, description="a named shape; none: the numbers below")
    layers: int | None = Field(None, description="decoder blocks; none: as `size` has them")
    width: int | None = Field(None, description="of the residual stream; none: as `size` has it")
    heads: int | None = Field(None, description="attention heads; none: as `size` has them")
    ffn: int | None = Field(None, description="width of the feed-forward; none: 4 x width")
    positions: Literal["document", "rope", "sequence"] = "sequence"
    context_slots: bool = Field(
        True,
        description="contexts are told from the main document by embeddings of their own; "
        'for positions "document"',
    )
    max_length: int | None = Field(
        None, description="longest sequence, tokens; none: as `size` has it, else 4096"
    )
    tie_embeddings: bool = Field(True, description="the output layer is the embedding")
    induction_start: bool = Field(
        False, description='start as induction over contexts; for positions "document"'
    )
    activation: Literal["gelu", "relu"] | None = Field(
        None, description="of the feed-forward; none: as `size` has it, else gelu"
    )
    qk_norm: bool | None = Field(
        None, description="normalise queries and keys; none: as `size` has it, else false"
    )
    dropout: float = 0.0
    init_std: float | None = Field(
        None, description="of linear layers at the start; none: as `size` has it, else 0.02"
    )
    init: InitConfig = Field(default_factory=InitConfig)
    start_from: str | None = Field(
        None, description="another generator of the run, whose weights this one starts from"
    )
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
    checkpoint_activations: bool = Field(
        False, description="compute blocks again in the backward pass: less memory, more time"
    )
    compile: bool = Field(False, description="compile the blocks with torch.compile")
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

    @model_validator(mode="after")
    def _slots_only_where_there_are_any(self) -> Self:
        if not self.context_slots and self.positions != "document":
            raise ValueError(
                f'context_slots is false, and positions "{self.positions}" have none: leave it out'
            )
        return self

    @model_validator(mode="after")
    def _shape_can_be_built(self) -> Self:
        self.shape(num_places=1)
        return self

    def shape(self, *, num_places: int) -> GeneratorConfig:
        """The generator's shape; `num_places` is the size of the layout's place table.

        Raises:
            ValueError: when there is neither a size nor all of the three numbers, or they do not
                fit together.
        """
        given = {name: getattr(self, name) for name in _OF_SIZE}
        given = {name: value for name, value in given.items() if value is not None}
        if self.size is None and not {"layers", "width", "heads"} <= set(given):
            raise ValueError("a generator needs `size`, or `layers`, `width` and `heads`")
        base = asdict(SIZES[self.size]) if self.size is not None else {}
        own = {
            "positions": self.positions,
            "num_places": num_places if self.positions == "document" else 0,
            "num_slots": self.stream.max_k + 1 if self.context_slots else 1,
            "tie_embeddings": self.tie_embeddings,
            "dropout": self.dropout,
            "checkpoint_activations": self.checkpoint_activations,
        }
        return GeneratorConfig(**(base | given | own))


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
            UsageError: when an input holds evaluation examples, or none at all, or the generator
                to start from does not fit.
        """
        from racm3.training.fit import fit

        pin_threads(workspace.threads)
        _check_tokenizers(inputs, reader)
        train = read_training_examples(reader, inputs["train"], "train")
        validation = read_training_examples(reader, inputs["validation"], "validation")
        check_episodes(config.stream, train)
        layout, images = _layout(config, inputs, reader)
        model = _model(config, layout, images)
        if "start" in inputs:
            _start(model, layout, inputs, reader)
        draws = DrawLog(workspace.progress / _DRAWS, active=workspace.rank == 0)
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


def _check_tokenizers(inputs: Inputs, reader: Reader) -> None:
    """Refuses examples that other tokenizers made, naming both artifacts."""
    for kind in ("text_tokenizer", "image_tokenizer"):
        for role in ("train", "validation"):
            check_together(reader.store, inputs[role].manifest, inputs[kind].manifest, kind)


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
    from racm3.generator.induction_start import start_image_embeddings, start_induction
    from racm3.generator.transformer import Generator

    shape = config.shape(num_places=layout.places.size)
    codebook = images.code_vectors.detach().cpu()
    random = torch.Generator().manual_seed(config.seed)
    model = Generator(shape, layout.vocabulary, generator=random, init=config.init)
    if config.induction_start:
        start_induction(model, layout.places, images.grid, codebook, generator=random)
    elif config.codebook_start:
        start_image_embeddings(model, codebook, generator=random)
    return model.to(device())


def _start(model: Generator, layout: Layout, inputs: Inputs, reader: Reader) -> None:
    """Gives the model the weights of the generator `start`, made with the same tokenizers."""
    from racm3.generator.warm_start import start_from

    start = inputs["start"].manifest
    refused = f"train_generator: cannot start from generator {start.artifact_id[:12]}: "
    made_with = {one.name: one for one in start.inputs}
    for name in ("text_tokenizer", "image_tokenizer"):
        its, ours = made_with[name], inputs[name].input_ref(name)
        if its.content_digest != ours.content_digest:
            raise UsageError(
                f"{refused}it was trained with {name} {its.artifact_id[:12]}, this one reads "
                f"{ours.artifact_id[:12]}; train both with one"
            )
    loaded = load_generator(reader.files(inputs["start"]))
    lengths = (layout.max_text_tokens, loaded.layout.max_text_tokens)
    if lengths[0] != lengths[1]:
        raise UsageError(f"{refused}max_text_tokens differ {lengths}; give both the same")
    try:
        start_from(model, loaded.model)
    except ValueError as error:
        raise UsageError(f"{refused}{error}; give both the same") from error


def _task(
    config: Config, model: Generator, train: list[Example], layout: Layout, draws: DrawLog
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


def _wrap(config: Config, workspace: Workspace) -> Callable[[Any], Any]:
    """Makes what `fit` trains of the bare model: shared by DDP or FSDP2, its blocks compiled."""
    share = workspace.wrap
    if config.sharding != "none" and share is not None:
        import torch

        from racm3.training.sharding import shard_blocks

        share = partial(shard_blocks, dtype=torch.bfloat16 if config.bf16 else None)

    def wrap(model: Generator) -> Any:
        wrapped = model if share is None else share(model)
        if config.compile:  # in place: DDP holds the model itself, FSDP2 a copy of it
            getattr(wrapped, "module", wrapped).compile_blocks()
        return wrapped

    return wrap


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
