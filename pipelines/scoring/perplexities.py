"""Perplexities of every generator at every number of contexts, and the comparison in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.models import LoadedGenerator
from pipelines.scoring.board import Board, Place, Slice
from racm3.document import DocumentTokens
from racm3.metrics.bootstrap import paired_bootstrap, resample
from racm3.metrics.perplexity import ExampleNLL, bits_score, example_nll, perplexity_score
from racm3.metrics.score import Score
from racm3.sequence.order import ContextOrder
from racm3.training.examples import Example

__all__ = ["Asked", "Contender", "Protocol", "measure_perplexities", "perplexities_of"]

Task = Literal["image", "caption"]
TASKS: tuple[Task, ...] = ("image", "caption")
WRONG = "wrong"
"""Stands where a memory's name stands: as many training documents, drawn at random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A generator that is measured."""

    name: str
    generator: LoadedGenerator
    reads_contexts: bool
    tasks: tuple[Task, ...] = TASKS
    """What it was trained for: a causal one writes no caption of an image."""
    order: ContextOrder = "best_first"
    """Of the contexts that it is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The evaluation examples that ask one memory."""

    examples: Sequence[Example]
    places: Sequence[Place]
    """Where each example belongs."""
    slices: Sequence[Slice]
    pixels: NDArray[np.float64]
    """Of each example's image."""
    spelt: Sequence[Sequence[int]]
    """How many UTF-8 bytes each token of each example's caption spells."""

    def extent(self, task: Task, measured: ExampleNLL) -> NDArray[np.float64]:
        """Pixels, or bytes of the caption's tokens that were measured, of each example, [n]."""
        if task == "image":
            return self.pixels
        counts = measured.tokens.astype(int).tolist()
        pairs = zip(self.spelt, counts, strict=True)
        return np.array([float(sum(lengths[:count])) for lengths, count in pairs])


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How perplexities are measured."""

    ks: tuple[int, ...]
    k: int
    """At which contenders are compared."""
    baseline: str
    """Name of the contender that the others are compared with, at 0 contexts."""
    seed: int
    resamples: int


def measure_perplexities(
    board: Board,
    contenders: Sequence[Contender],
    asked: Mapping[str, Asked],
    pool: Sequence[DocumentTokens],
    protocol: Protocol,
    tick: Callable[[str], None],
) -> None:
    """Fills the board with perplexities, bits a pixel and byte, and differences.

    Args:
        board: Filled.
        contenders: All generators.
        asked: Examples by memory.
        pool: Training documents, from which wrong contexts are drawn.
        protocol: How.
        tick: Told what was measured, for whoever waits.
    """
    for memory, these in asked.items():
        some = these.examples
        measured: dict[tuple[str, str, int, str], ExampleNLL] = {}
        for contender in contenders:
            wrong = _wrong_contexts(len(some), pool, protocol)
            for task in contender.tasks:
                for k in protocol.ks if contender.reads_contexts else (0,):
                    nll = _nll(contender, some, task, k, None, protocol.seed)
                    measured[contender.name, task, k, memory if k else ""] = nll
                    tick(f"{contender.name}: {task} perplexity at K={k}, {memory}")
                if contender.reads_contexts:
                    nll = _nll(contender, some, task, protocol.k, wrong, protocol.seed)
                    measured[contender.name, task, protocol.k, WRONG] = nll
        _write(board, measured, these, protocol)
        _compare(board, measured, contenders, these, protocol, memory)


def perplexities_of(contenders: Sequence[Contender], protocol: Protocol) -> int:
    """How much is measured with each memory: what `tick` is told of."""
    return sum(
        len(one.tasks) * (len(protocol.ks) if one.reads_contexts else 1) for one in contenders
    )


def _nll(
    contender: Contender,
    examples: Sequence[Example],
    task: Task,
    k: int,
    contexts: Sequence[Sequence[DocumentTokens]] | None,
    seed: int,
) -> ExampleNLL:
    return example_nll(
        contender.generator.model,
        examples,
        layout=contender.generator.layout,
        task=task,
        k=k,
        contexts=contexts,
        order=contender.order,
        seed=seed,
    )


def _wrong_contexts(
    n: int, pool: Sequence[DocumentTokens], protocol: Protocol
) -> list[list[DocumentTokens]]:
    rng = np.random.default_rng([protocol.seed, 1])
    rows = rng.integers(0, len(pool), (n, protocol.k)).tolist()
    return [[pool[i] for i in row] for row in rows]


def _write(
    board: Board,
    measured: Mapping[tuple[str, str, int, str], ExampleNLL],
    asked: Asked,
    protocol: Protocol,
) -> None:
    for where in asked.slices:
        drawn = resample(
            [asked.places[i].cluster for i in where.index],
            rng=np.random.default_rng([protocol.seed, 2]),
            resamples=protocol.resamples,
        )
        for (model, name, k, memory), nll in measured.items():
            part = ExampleNLL(nll=nll.nll[where.index], tokens=nll.tokens[where.index])
            if part.tokens.sum() == 0:
                continue
            task: Task = "image" if name == "image" else "caption"
            extent = asked.extent(task, nll)
            for score in (
                perplexity_score(part, task=task, resampling=drawn),
                bits_score(part, extent[where.index], task=task, resampling=drawn),
            ):
                board.add(score, model=model, task=task, where=where, k=k, memory=memory)


def _compare(
    board: Board,
    measured: Mapping[tuple[str, str, int, str], ExampleNLL],
    contenders: Sequence[Contender],
    asked: Asked,
    protocol: Protocol,
    memory: str,
) -> None:
    for contender in contenders:
        if contender.name == protocol.baseline or not contender.reads_contexts:
            continue
        for task in TASKS:
            ours = measured[contender.name, task, protocol.k, memory]
            base = measured.get((protocol.baseline, task, 0, ""))
            if base is None:
                continue
            for where in asked.slices:
                for score in _paired(ours, base, where, asked.places, protocol):
                    board.add(
                        score, model=contender.name, task=task, where=where, k=protocol.k,
                        memory=memory,
                    )  # fmt: skip


def _paired(
    ours: ExampleNLL, base: ExampleNLL, where: Slice, places: Sequence[Place], protocol: Protocol
) -> list[Score]:
    index = where.index[ours.tokens[where.index] > 0]
    if len(index) == 0:
        return []
    pair = paired_bootstrap(
        ours.nll[index],
        base.nll[index],
        ours.tokens[index].astype(np.int64),
        [places[i].cluster for i in index],
        rng=np.random.default_rng([protocol.seed, 3]),
        resamples=protocol.resamples,
    )
    how = (
        f"paired bootstrap over {pair.groups} concepts, {protocol.resamples} draws, "
        f"against {protocol.baseline} at equal training compute"
    )
    return [
        Score(
            name="perplexity_ratio",
            value=pair.ratio,
            unit="ratio",
            higher_is_better=False,
            n=pair.n,
            low=pair.ratio_low,
            high=pair.ratio_high,
            protocol=how,
        ),
        Score(
            name="nll_difference",
            value=pair.difference,
            unit="nats",
            higher_is_better=False,
            n=pair.n,
            low=pair.difference_low,
            high=pair.difference_high,
            protocol=how,
        ),
    ]
