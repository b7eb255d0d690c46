"""Few-shot classification of evaluation documents by labels that mean nothing.

Asked in two ways: which label is the likelier under the image (`direct`, as the paper does), and
under which class's demonstration the image is the likelier (`channel`, `racm3.sampling.channel`).
The same trials for every generator and both ways. A row of its own tells of the categories of
which no document is trained on, where there are two or more.

What is shown is of the evaluation set, as what is asked, or it is what the memory holds of the same
concepts and captions: drawn or photographed by others, as the contexts are that a generator reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pipelines.records import KEPT, MEMORY_ROLES
from pipelines.runtime.stage import StageConfig
from pipelines.scoring.board import Board, Slice
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

__all__ = [
    "DEMONSTRATIONS",
    "METRICS",
    "NEW",
    "OF_MEMORY",
    "FewShotConfig",
    "Pool",
    "measure_few_shot",
    "pool_of",
    "shown_by_memory",
]

TASK = "classify"
DEMONSTRATIONS = "demonstrations"
"""Stands where a memory's name stands: what is in front was not retrieved."""
OF_MEMORY = "demonstrations of the memory"
"""The same, where it came out of the memory though nobody asked it."""
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

    later: ClassVar[Mapping[str, Any]] = {"demonstrations": "set"}

    trials: int = Field(0, ge=0, description="of each evaluation set; 0: not measured")
    ks: tuple[int, ...] = Field((1, 2, 4, 8), description="demonstrations of each class")
    methods: tuple[Method, ...] = Field(
        ("direct", "channel"),
        description="direct: the likelier label under the image; channel: the class under whose "
        "demonstration and label the image is likelier",
    )
    demonstrations: Literal["set", "memory"] = Field(
        "set",
        description="set: documents of the set that is asked about; memory: what the memory holds "
        "of their concepts and captions",
    )
    labels: tuple[str, str] = Field(("dax", "wug"), description="captions of the two classes")
    all_orders: bool = Field(True, description="average over the orders of the demonstrations")
    all_labels: bool = Field(
        True, description="average over which label stands for which class; the paper does not"
    )
    calibrate: bool = Field(False, description="divide by what the labels have without the image")

    @property
    def shows_memory(self) -> bool:
        """Whether what is shown has to be looked up in the memory."""
        return self.trials > 0 and self.demonstrations == "memory"

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
class Pool:
    """Evaluation documents that have a category."""

    members: Mapping[str, Sequence[Member]]
    """By evaluation set."""
    codes: Mapping[str, tuple[int, ...]]
    """By document id."""
    trained: Set[str]
    """Categories of training documents."""
    stand_ins: Mapping[str, str] | None = None
    """Id of what is shown in place of a document, by the document's; None: itself."""

    def codes_shown(self, document_id: str) -> tuple[int, ...]:
        """Of the image that demonstrates what a document shows."""
        return self.codes[(self.stand_ins or {}).get(document_id, document_id)]


def pool_of(evaluation: Iterable[pa.Table], train: pa.Table) -> Pool:
    """What can be asked and shown.

    Args:
        evaluation: `examples` of role evaluation; a document may be in several tables.
        train: `examples` of role train.
    """
    members: dict[str, dict[str, Member]] = {}
    codes: dict[str, tuple[int, ...]] = {}
    columns = ["document_id", "set", "category", "concept", "image_tokens"]
    for table in evaluation:
        for row in table.select(columns).to_pylist():
            if row["category"] is None:
                continue
            name = row["document_id"]
            codes[name] = tuple(row["image_tokens"])
            members.setdefault(row["set"] or "", {})[name] = Member(
                document_id=name, category=row["category"], concept=row["concept"] or name
            )
    trained = {name for name in train.column("category").to_pylist() if name is not None}
    return Pool(
        members={name: tuple(found.values()) for name, found in sorted(members.items())},
        codes=codes,
        trained=frozenset(trained),
    )


def shown_by_memory(pool: Pool, documents: pa.Table, image_tokens: pa.Table) -> Pool:
    """The pool's documents for which the memory holds another of the same concept and caption.

    Args:
        pool: As of `pool_of`.
        documents: All, with `document_id`, `concept`, `caption`, `role` and `outcome`.
        image_tokens: `document_id` and `codes` of the memory's at least.
    """
    asked = {one.document_id for some in pool.members.values() for one in some}
    subjects, held = {}, dict[tuple[str, str], str]()
    for row in documents.filter(pc.equal(documents["outcome"], KEPT)).to_pylist():
        subject = row["concept"] or row["document_id"], row["caption"]
        if row["document_id"] in asked:
            subjects[row["document_id"]] = subject
        elif row["role"] in MEMORY_ROLES:
            held[subject] = min(held.get(subject, row["document_id"]), row["document_id"])
    stand_ins = {name: held[subject] for name, subject in subjects.items() if subject in held}
    shown = pc.is_in(image_tokens["document_id"], value_set=pa.array(sorted(stand_ins.values())))
    rows = image_tokens.filter(shown).select(["document_id", "codes"]).to_pylist()
    return replace(
        pool,
        members={
            name: tuple(one for one in some if one.document_id in stand_ins)
            for name, some in pool.members.items()
        },
        codes={**pool.codes, **{row["document_id"]: tuple(row["codes"]) for row in rows}},
        stand_ins=stand_ins,
    )


def measure_few_shot(
    board: Board,
    contenders: Sequence[Contender],
    pool: Pool,
    text: TextTokenizer,
    config: FewShotConfig,
    protocol: Protocol,
    tick: Callable[[str], None],
) -> dict[str, list[int]]:
    """Fills the board with accuracies, and with their differences to the baseline's.

    Args:
        board: Filled.
        contenders: All generators.
        pool: What is asked and shown.
        text: Makes tokens of the labels.
        config: How many trials of what.
        protocol: Its baseline, seed and resamples count here.
        tick: Told what was measured.

    Returns:
        By slice: the numbers of demonstrations that no two of its categories have concepts for.
    """
    left_out: dict[str, list[int]] = {}
    for where, members in _slices(pool):
        ks = [k for k in config.ks if len(categories_of(members, k)) > 1]
        if len(ks) < len(config.ks):
            left_out[_name(where)] = list(config.ks[len(ks) :])
        if not ks:
            continue
        trials = draw_trials(members, k=ks[-1], count=config.trials, seed=protocol.seed)
        for method in config.methods:
            told = {
                one.name: _told(one, method, trials, ks, pool, text, config) for one in contenders
            }
            for one in contenders:
                for k in ks:
                    _add(board, one, method, told, trials, k, where, config, protocol)
                tick(f"{one.name}: few-shot classification ({method}), {_name(where)}")
    return left_out


def _slices(pool: Pool) -> Iterable[tuple[Slice, Sequence[Member]]]:
    """Each set, and what of it is of new categories where these are not all it has."""
    for name, members in pool.members.items():
        none = np.array([], dtype=np.int64)
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
) -> dict[int, NDArray[np.float64]]:
    """Probabilities of both classes in each trial, [trials, 2], by the number of demonstrations."""
    from racm3.sampling.channel import image_log_likelihoods, mixture
    from racm3.sampling.classify import ClassifyConfig, Question, classify, ensemble

    model, layout = contender.generator.model, contender.generator.layout
    questions = [
        Question(
            image=pool.codes[trial.asked],
            demonstrations=tuple(
                tuple(map(pool.codes_shown, pair)) for pair in trial.demonstrations
            ),
        )
        for trial in trials
    ]
    labels = [tuple(text.encode(label)) for label in config.labels]
    if method == "channel":
        found = image_log_likelihoods(
            model, layout, questions, labels, all_labels=config.all_labels
        )
        return {k: np.stack([mixture(one, k) for one in found]) for k in ks}
    how = ClassifyConfig(
        all_orders=config.all_orders, all_labels=config.all_labels, calibrate=config.calibrate
    )
    found = classify(model, layout, questions, labels, how)
    return {k: np.stack([ensemble(one, k) for one in found]) for k in ks}


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
            memory=OF_MEMORY if config.shows_memory else DEMONSTRATIONS,
        )


def _how(trials: Sequence[Trial], method: Method, config: FewShotConfig) -> str:
    categories = {name for trial in trials for name in trial.classes}
    labels = " and ".join(repr(label) for label in config.labels)
    both_labels = ", each class under both labels" if config.all_labels else ""
    parts = (
        f"two of {len(categories)} categories at a time, labelled {labels}; chance is 0.5",
        _channel(both_labels) if method == "channel" else _direct(both_labels, config),
        "images of one trial show different concepts",
        *(["what the memory holds of a concept demonstrates it"] if config.shows_memory else []),
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


def _channel(both_labels: str) -> str:
    return (
        "likelihood of the image's codes after one demonstration and under its label"
        f"{both_labels}, averaged over K demonstrations of the class"
    )


def _name(where: Slice) -> str:
    return f"{where.set}, {where.group}" if where.group else where.set
