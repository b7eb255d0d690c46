"""What a run would cost, before it runs: parameters, memory, tokens, FLOPs and hours.

Counted from the configuration alone, so captions count at their longest (`max_text_tokens`), the
few tokens that masking adds are left out, and so is the padding of packed rows. Seconds come from
what was measured: what a step took when it ran last, or, for generators, the FLOPs of a second of
an earlier one. The formulas are in `racm3.generator.flops` and `racm3.generator.memory`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.config import RunConfig
from pipelines.plan import PlannedStep
from pipelines.runtime.catalog import manifests, read_ref
from pipelines.runtime.store import Store
from pipelines.step import Dag
from racm3.generator.config import GeneratorConfig
from racm3.generator.flops import training_flops
from racm3.generator.memory import TrainingMemory, parameter_count, training_memory
from racm3.sequence.places import PlaceTable
from racm3.training.stream import StreamConfig
from racm3.vocabulary import Vocabulary
from storage_schemas.manifest import Manifest

__all__ = ["Estimate", "GeneratorCost", "Past", "estimates", "generator_cost", "step_size"]

_GENERATOR = "train_generator["


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSize:
    """What a step reads, on average over K, and at most."""

    tokens: float
    """Positions computed, over all workers."""
    squares: float
    """Sum of the lengths squared within which tokens attend."""
    predictions: float
    """Positions whose logits are computed."""
    largest: int
    """Most positions of one worker's forward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorCost:
    """Of training one generator."""

    parameters: int
    vocabulary: int
    image_tokens: int
    workers: int
    steps: float
    """Of the config; under a FLOPs budget what it pays for."""
    tokens: float
    """Read in training, contexts included."""
    flops: float
    """Forward and backward, over all workers."""
    memory: TrainingMemory
    """Of one worker."""
    checkpointing: bool
    """Whether the recipe has it."""

    @property
    def worker_bytes(self) -> int:
        """Memory that each worker needs, as the recipe has it."""
        return self.memory.total(checkpointing=self.checkpointing)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self) | {"worker_bytes": self.worker_bytes}


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """How long a step that is not there will take."""

    seconds: float | None
    """None: nothing was measured that would tell."""
    basis: str
    """Where the number comes from, in a few words."""


def generator_cost(run: RunConfig, name: str) -> GeneratorCost | None:
    """The cost of one generator of a run; None where the image tokenizer's file has to be read."""
    config, tokenizer = run.generators[name], run.image_tokenizer
    codes = tokenizer.model if tokenizer.pretrained is None else tokenizer.pretrained.spec()
    if codes is None:
        return None
    image_tokens = codes.grid[0] * codes.grid[1]
    places = PlaceTable(max_text_tokens=run.max_text_tokens, image_tokens=image_tokens)
    vocabulary = Vocabulary(
        text_size=run.text_tokenizer.vocab_size,
        image_size=codes.codebook_size,
        num_sentinels=config.num_sentinels,
    ).size
    shape = config.shape(num_places=places.size)
    workers = max(1, config.workers)
    size = step_size(
        config.stream, image_tokens=image_tokens, workers=workers, parts=config.fit.accumulate
    )
    each = _flops(shape, size, vocabulary)
    budget = config.fit.flops_budget
    steps = float(config.fit.steps) if config.fit.steps is not None else float("inf")
    steps = min(steps, budget / each) if budget is not None else steps
    return GeneratorCost(
        parameters=parameter_count(shape, vocabulary),
        vocabulary=vocabulary,
        image_tokens=image_tokens,
        workers=workers,
        steps=steps,
        tokens=steps * size.tokens,
        flops=steps * each,
        memory=training_memory(
            shape,
            vocabulary_size=vocabulary,
            tokens=size.largest,
            predictions=size.largest,
            bf16=config.bf16,
            packed=config.stream.pack_length is not None,
            shards=workers if config.sharding != "none" else 1,
        ),
        checkpointing=config.checkpoint_activations,
    )


def step_size(stream: StreamConfig, *, image_tokens: int, workers: int, parts: int = 1) -> StepSize:
    """What a step reads when every caption is as long as it may be.

    Args:
        stream: How batches are drawn.
        image_tokens: Codes of an image.
        workers: Among which the batch is split.
        parts: Micro-batches that each reads its share in.
    """
    document = stream.max_text_tokens + image_tokens + 2
    room = stream.max_length - document - 3 * stream.most_spans
    fitting = max(0, min(stream.max_k, room // document))
    chances = [1 / (stream.max_k + 1)] * fitting + [1 - fitting / (stream.max_k + 1)]
    rows = -(-stream.batch_size // (workers * parts))
    read = chances
    if stream.pack_length is None and not stream.k_per_batch:
        below = [sum(chances[: k + 1]) for k in range(fitting + 1)]
        read = [now**rows - (below[k - 1] ** rows if k else 0) for k, now in enumerate(below)]
    read, chances = ([(1 - stream.k0_fraction) * p for p in some] for some in (read, chances))
    read[0], chances[0] = read[0] + stream.k0_fraction, chances[0] + stream.k0_fraction
    lengths = [(k + 1) * document for k in range(fitting + 1)]
    labels = lengths if stream.alpha else [document] * len(lengths)
    return StepSize(
        tokens=stream.batch_size * _mean(read, lengths),
        squares=stream.batch_size * _mean(read, [length**2 for length in lengths]),
        predictions=stream.batch_size * _mean(chances, labels),
        largest=rows * lengths[-1],
    )


def _mean(chances: Sequence[float], values: Sequence[float]) -> float:
    return sum(p * value for p, value in zip(chances, values, strict=True))


def _flops(shape: GeneratorConfig, size: StepSize, vocabulary: int) -> float:
    parts = {"rows": 1, "length": round(size.tokens), "predictions": round(size.predictions)}
    return training_flops(shape, **parts, vocabulary_size=vocabulary, attended=size.squares)


def estimates(
    planned: Sequence[PlannedStep],
    dag: Dag,
    run: RunConfig,
    store: Store,
    *,
    flops_per_second: float | None = None,
) -> dict[str, Estimate]:
    """How long the steps that are not there would take, by label.

    Args:
        planned: What `plan_of` says of them.
        dag: The steps.
        run: Whose steps they are.
        store: Where earlier artifacts may be.
        flops_per_second: Of one worker, in place of what was measured.
    """
    refs = {step.label: step.ref for step in dag.steps}
    past = Past(store)
    return {
        step.label: past.estimate(
            step.label,
            run,
            read_ref(store, run.namespace, refs[step.label]),
            flops_per_second=flops_per_second,
        )
        for step in planned
        if step.state != "reused"
    }


class Past:
    """What generators took that were trained here."""

    def __init__(self, store: Store) -> None:
        found = sorted(manifests(store, "generator"), key=lambda made: made.created_at)
        self._newest = found[-1] if found else None

    def estimate(
        self, label: str, run: RunConfig, last: Manifest | None, *, flops_per_second: float | None
    ) -> Estimate:
        """How long a step would take.

        Args:
            label: In the DAG of the run.
            run: Whose step it is.
            last: The artifact that an equal or like step made; None: there is none.
            flops_per_second: As of `estimates`.
        """
        if label.startswith(_GENERATOR):
            name = label.removeprefix(_GENERATOR).rstrip("]")
            return _training(generator_cost(run, name), last or self._newest, flops_per_second)
        if last is not None:
            return Estimate(seconds=last.seconds, basis=f"as {last.artifact_id[:12]} took")
        return Estimate(seconds=None, basis="never run here")


def _training(
    cost: GeneratorCost | None, measured: Manifest | None, given: float | None
) -> Estimate:
    """FLOPs over FLOPs a second, given or measured."""
    if cost is None:
        return Estimate(seconds=None, basis="image_tokenizer.pretrained has no preset to count by")
    if given is not None:
        speed, basis = given, f"{given:.3g} FLOP/s a worker, as given"
    elif (speed := _speed(measured)) and measured is not None:
        basis = f"{speed:.3g} FLOP/s a worker, as {measured.artifact_id[:12]} had"
    else:
        return Estimate(
            seconds=None, basis="no generator was trained here; give --flops-per-second"
        )
    return Estimate(seconds=cost.flops / (speed * cost.workers), basis=basis)


def _speed(measured: Manifest | None) -> float:
    """FLOPs a second and worker of a generator that was trained; 0 where that is not known."""
    if measured is None or measured.seconds <= 0:
        return 0.0
    facts: Mapping[str, Any] = measured.facts
    workers = max(1, int(facts.get("workers", 1)))
    return float(facts.get("training_flops", 0.0)) / measured.seconds / workers
