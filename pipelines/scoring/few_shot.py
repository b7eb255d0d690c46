"""Few-shot classification of evaluation documents by labels that mean nothing.

Asked in two ways: which label is the likelier under the image (`direct`, as the paper does), and
under which class's demonstration the image is the likelier (`channel`, `racm3.sampling.channel`).
The same trials for every generator and both ways. A row of its own tells of the categories of
which no document is trained on, where there are two or more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pipelines.runtime.stage import StageConfig
from pipelines.scoring.board import Board, Slice
from pipelines.scoring.few_shot_pool import Demonstrations, Pool
from pipelines.scoring.perplexities import Contender, Protocol
from racm3.metrics.bootstrap import resample
from racm3.metrics.few_shot import (
    Member,
    Trial,
    categories_of,
    draw_trials,
    few_shot_accuracy,
    few_shot_gain,
    trial_accuracy,
)
from racm3.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from racm3.sampling.classify import Question

__all__ = [
    "DEMONSTRATIONS",
    "METRICS",
    "NEW",
    "OF_OTHERS",
    "FewShotConfig",
    "Watch",
    "few_shots_of",
    "measure_few_shot",
]

TASK = "classify"
DEMONSTRATIONS = "demonstrations"
"""Stands where a memory's name stands: what is in front was not retrieved."""
OF_OTHERS = "demonstrations by others"
"""The same, where it came out of the memory and from another source."""
NEW = "new categories"
"""The group of the trials whose two categories were never trained on."""
Method = Literal["direct", "channel"]
METRICS: dict[Method, tuple[str, str]] = {
    "direct": ("few_shot_accuracy", "few_shot_gain"),
    "channel": ("few_shot_channel_accuracy", "few_shot_channel_gain"),
}
"""Names of the accuracy, and of its difference to the baseline's."""
_PAPER = {1: "RA-CM3 0.78, vanilla CM3 0.53 [S]", 8: "RA-CM3 0.90 [S]"}
"""Of 2.7B parameters, as notes on the paper have it (arXiv:2211.12561)."""


class FewShotConfig(StageConfig):
    """How trials of few-shot classification are made; none by default."""

    later: ClassVar[Mapping[str, Any]] = {
        "demonstrations": "set",
        "pooling": "mixture",
        "together": 1,
        "categories": "every",
    }

    trials: int = Field(0, ge=0, description="of each evaluation set; 0: not measured")
    categories: Literal["every", "new"] = Field(
        "every",
        description="every: all of a set, and those without training documents once more by "
        "themselves; new: these alone",
    )
    ks: tuple[int, ...] = Field((1, 2, 4, 8), description="demonstrations of each class")
    methods: tuple[Method, ...] = Field(
        ("direct", "channel"),
        description="direct: the likelier label under the image; channel: the class under whose "
        "demonstration and label the image is likelier",
    )
    demonstrations: Demonstrations = Field(
        "set",
        description="set: documents of the set that is asked about; others: documents of the "
        "memory that are from other sources",
    )
    pooling: Literal["mixture", "average"] = Field(
        "mixture",
        description="of K demonstrations of a class, by channel: their mean likelihood, or the "
        "average of what each of the K sets says; direct always averages, as the paper does",
    )
    together: int = Field(
        1,
        ge=1,
        description="demonstrations of a class in one sequence, by channel; as many as the "
        "generators read contexts, or fewer",
    )
    labels: tuple[str, str] = Field(("dax", "wug"), description="captions of the two classes")
    all_orders: bool = Field(True, description="average over the orders of the demonstrations")
    all_labels: bool = Field(
        True, description="average over which label stands for which class; the paper does not"
    )
    calibrate: bool = Field(False, description="divide by what the labels have without the image")

    @property
    def shows_others(self) -> bool:
        """Whether what is shown has to be looked up in the memory."""
        return self.trials > 0 and self.demonstrations == "others"

    @field_validator("ks")
    @classmethod
    def _some_and_positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("ks must name one number of demonstrations at least, each from 1 on")
        return tuple(sorted(set(value)))

    @field_validator("labels")
    @classmethod
    def _two_words(cls, value: tuple[str, str]) -> tuple[str, str]:
        if value[0] == value[1] or not all(value):
            raise ValueError("labels must be two different texts, neither of them empty")
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """Whom to tell how far it is."""

    done: Callable[[str], None]
    """Told what was measured."""
    reading: Callable[[str, int, int], None]
    """Told what is being measured, the sequences of it that are read, and all."""


def measure_few_shot(
    board: Board,
    contenders: Sequence[Contender],
    pool: Pool,
    text: TextTokenizer,
    config: FewShotConfig,
    protocol: Protocol,
    watch: Watch,
) -> dict[str, list[int]]:
    """Fills the board with accuracies, and with their differences to the baseline's.

    Args:
        board: Filled.
        contenders: All generators.
        pool: What is asked and shown.
        text: Makes tokens of the labels.
        config: How many trials of what.
        protocol: Its baseline, seed and resamples count here.
        watch: Told how far it is.

    Returns:
        By slice: the numbers of demonstrations that no two of its categories have concepts for.
    """
    left_out: dict[str, list[int]] = {}
    for where, members in _slices(pool, config):
        ks = [k for k in config.ks if len(categories_of(members, k, shown=pool.shown)) > 1]
        if len(ks) < len(config.ks):
            left_out[_name(where)] = list(config.ks[len(ks) :])
        if not ks:
            continue
        trials = draw_trials(
            members, k=ks[-1], count=config.trials, seed=protocol.seed, shown=pool.shown
        )
        for method in config.methods:
            told = {}
            for one in contenders:
                note = f"{one.name}: few-shot classification ({method}), {_name(where)}"
                reading = partial(watch.reading, note)
                told[one.name] = _told(one, method, trials, ks, pool, text, config, reading)
                watch.done(note)
            for one in contenders:
                for k in ks:
                    _add(board, one, method, told, trials, k, where, config, protocol)
    return left_out


def few_shots_of(pool: Pool, config: FewShotConfig) -> int:
    """How much is measured of each contender: what `Watch.done` is told of."""
    asked = sum(
        any(len(categories_of(members, k, shown=pool.shown)) > 1 for k in config.ks)
        for _, members in _slices(pool, config)
    )
    return asked * len(config.methods)


def _slices(pool: Pool, config: FewShotConfig) -> Iterable[tuple[Slice, Sequence[Member]]]:
    """Each set where every category is asked, and what of it is of two new categories or more."""
    for name, members in pool.members.items():
        none = np.array([], dtype=np.int64)
        if config.categories == "every":
            yield Slice(set=name, group="", index=none), members
        new = [one for one in members if one.category not in pool.trained]
        if len({one.category for one in new}) > 1:
            yield Slice(set=name, group=NEW, index=none), new


def _told(
    contender: Contender,
    method: Method,
    trials: Sequence[Trial],
    ks: Sequence[int],
    pool: Pool,
    text: TextTokenizer,
    config: FewShotConfig,
    reading: Callable[[int, int], None],
) -> dict[int, NDArray[np.float64]]:
    """Probabilities of both classes in each trial, [trials, 2], by the number of demonstrations."""
    from racm3.sampling.classify import ClassifyConfig, Question, classify, ensemble

    model, layout = contender.generator.model, contender.generator.layout
    questions = [
        Question(
            image=pool.codes[trial.asked],
            demonstrations=tuple(
                tuple(pool.codes[name] for name in pair) for pair in trial.demonstrations
            ),
        )
        for trial in trials
    ]
    labels = [tuple(text.encode(label)) for label in config.labels]
    if method == "channel":
        return _by_channel(contender, questions, labels, ks, config, reading)
    how = ClassifyConfig(
        all_orders=config.all_orders, all_labels=config.all_labels, calibrate=config.calibrate
    )
    found = classify(model, layout, questions, labels, how, progress=reading)
    return {k: np.stack([ensemble(one, k) for one in found]) for k in ks}


def _by_channel(
    contender: Contender,
    questions: Sequence[Question],
    labels: Sequence[tuple[int, ...]],
    ks: Sequence[int],
    config: FewShotConfig,
    reading: Callable[[int, int], None],
) -> dict[int, NDArray[np.float64]]:
    """As `_told`; what a sequence holds depends on k, so each number of them is read once."""
    from racm3.sampling.channel import image_log_likelihoods, mixture, shares
    from racm3.sampling.classify import ensemble

    model, layout = contender.generator.model, contender.generator.layout
    found = {}
    for together in sorted({min(k, config.together) for k in ks}):
        own = [k for k in ks if min(k, config.together) == together]
        asked = [replace(one, demonstrations=one.demonstrations[: own[-1]]) for one in questions]
        likely = image_log_likelihoods(
            model,
            layout,
            asked,
            labels,
            all_labels=config.all_labels,
            together=together,
            progress=reading,
        )
        for k in own:
            sequences = -(-k // together)
            found[k] = np.stack(
                [
                    mixture(one, sequences)
                    if config.pooling == "mixture"
                    else ensemble(shares(one), sequences)
                    for one in likely
                ]
            )
    return found


def _add(
    board: Board,
    contender: Contender,
    method: Method,
    told: Mapping[str, Mapping[int, NDArray[np.float64]]],
    trials: Sequence[Trial],
    k: int,
    where: Slice,
    config: FewShotConfig,
    protocol: Protocol,
) -> None:
    truth = [trial.truth for trial in trials]
    values = {name: trial_accuracy(found[k], truth) for name, found in told.items()}
    resampling = resample(
        [trial.cluster for trial in trials],
        rng=np.random.default_rng([protocol.seed, 6]),
        resamples=protocol.resamples,
    )
    accuracy, gain = METRICS[method]
    ours, base = values[contender.name], values.get(protocol.baseline)
    paper = _PAPER.get(k) if method == "direct" else None
    how = _how(trials, method, config)
    scores = [few_shot_accuracy(ours, resampling, protocol=how, name=accuracy, reference=paper)]
    if base is not None and contender.name != protocol.baseline:
        how = f"{accuracy} minus that of {protocol.baseline} in the same trials"
        scores.append(few_shot_gain(ours, base, resampling, protocol=how, name=gain))
    for score in scores:
        board.add(
            score,
            model=contender.name,
            task=TASK,
            where=where,
            k=k,
            memory=OF_OTHERS if config.shows_others else DEMONSTRATIONS,
        )


def _how(trials: Sequence[Trial], method: Method, config: FewShotConfig) -> str:
    categories = {name for trial in trials for name in trial.classes}
    labels = " and ".join(repr(label) for label in config.labels)
    both_labels = ", each class under both labels" if config.all_labels else ""
    parts = (
        f"two of {len(categories)} categories at a time, labelled {labels}; chance is 0.5",
        _channel(both_labels, config) if method == "channel" else _direct(both_labels, config),
        "images of one trial show different concepts",
        *(["demonstrations are of the memory, by others"] if config.shows_others else []),
        "a generator trained without contexts reads the same sequence, the demonstrations in the "
        "slot of the main document; intervals over concepts of the images asked about",
    )
    return "; ".join(parts)


def _direct(both_labels: str, config: FewShotConfig) -> str:
    orders = "both orders" if config.all_orders else "one order"
    calibrated = ", divided by those without the image" if config.calibrate else ""
    return (
        f"K pairs of demonstrations, one pair a sequence, {orders}{both_labels}, probabilities of "
        f"the labels{calibrated} averaged"
    )


def _channel(both_labels: str, config: FewShotConfig) -> str:
    shown = (
        "one demonstration and under its label"
        if config.together == 1
        else f"{config.together} demonstrations of a class (or K, if fewer) and under their label"
    )
    likelihood = f"likelihood of the image's codes after {shown}{both_labels}"
    if config.pooling == "mixture":
        return f"{likelihood}, averaged over K demonstrations of the class"
    return f"{likelihood}, turned into probabilities of the two, which are averaged"


def _name(where: Slice) -> str:
    return f"{where.set}, {where.group}" if where.group else where.set
