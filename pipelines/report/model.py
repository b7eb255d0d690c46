"""What the page shows, as plain records: `write_report` fills them, `page` renders them.

Everything here is data. Captions and URLs are kept as strangers wrote them; `page` cleans and
escapes whatever it prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "Curve",
    "Document",
    "Generation",
    "ModelFacts",
    "Panel",
    "Report",
    "Sample",
    "ScoreRow",
    "Sheet",
    "StageRow",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    """One row of the table `scores`."""

    metric: str
    model: str
    task: str
    set: str
    group: str
    """Empty: the whole set; `rest`: what is in no group of its own."""
    k: int
    memory: str
    """Name of the memory; `wrong`: random training documents; empty: no contexts."""
    value: float
    n: int
    unit: str
    low: float | None = None
    """Lower end of the 95 % interval."""
    high: float | None = None
    protocol: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What a generator is and what its training cost."""

    name: str
    artifact_id: str
    parameters: int
    steps: int
    best_step: int
    flops: float
    """Training compute, contexts counted."""
    tokens: float
    validation_loss: float | None
    """Lowest, nats a token."""
    seconds: float
    """Wall time of the stage."""
    max_k: int
    """Most contexts in training; 0: it reads none."""
    stopped_by: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A document that is shown, and where it came from."""

    document_id: str
    caption: str
    image: str | None
    """`data:image/png;base64,...` of a re-encoded picture; None: not there any more."""
    source: str
    role: str
    url: str | None
    row: str
    """Source file and row, for people."""

    @property
    def anchor(self) -> str:
        """Of its lineage on the page."""
        return f"d-{self.document_id[:16]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One sample of one generator, and all that made it."""

    generation_id: str
    model: str
    checkpoint: str
    """Artifact id of the generator."""
    task: str
    memory: str
    """Empty: none was asked."""
    k: int
    contexts: tuple[str, ...]
    """Document ids, in the order fed."""
    prompt_id: str
    seed: int
    sampler: str
    image: str | None = None
    """As in `Document`."""
    caption: str | None = None

    @property
    def anchor(self) -> str:
        """Of its lineage on the page."""
        return f"g-{self.generation_id[:16]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One prompt and what each generator made of it."""

    prompt: str | None
    """Caption that was given; None where the image was."""
    truth: Document
    contexts: tuple[Document, ...]
    """Fed to the first generation that had any."""
    answers: tuple[Generation | None, ...]
    """One a column of the sheet."""
    hole: str | None = None
    """The image given, grey where it was drawn anew; as in `Document`. None: no part was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """Samples of one task on one slice of the evaluation documents."""

    title: str
    task: str
    """image, caption, infill, edit or demonstrate."""
    columns: tuple[str, ...]
    samples: tuple[Sample, ...]
    out_of: int
    """Prompts that the samples were chosen from, by digest."""
    ranking: str = ""
    """How one of several candidates was chosen; empty: there was one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One line of a chart."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    faint: bool = False
    """A reference line, drawn thin and dashed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One chart."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """One call of a stage in this run."""

    label: str
    kind: str
    artifact_id: str
    reads: tuple[str, ...]
    """Labels of the calls whose artifacts it read."""
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    counts: Mapping[str, int]
    seconds: float
    """Wall time of the run that computed it."""
    shards: int
    executed: int
    """Shards that the run which published it computed; the others came from receipts."""
    reused: bool
    """Published by an earlier run."""

    @property
    def conserved(self) -> bool:
        """Rows in = rows out + drops by reason."""
        return self.rows_in == self.rows_out + sum(self.dropped.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The whole page."""

    title: str
    run_id: str
    created_at: str
    focus: str
    """Name of the generator the page is about."""
    baseline: str
    """Name of the generator it is compared with."""
    scores: tuple[ScoreRow, ...]
    models: tuple[ModelFacts, ...]
    sheets: tuple[Sheet, ...]
    panels: tuple[Panel, ...]
    stages: tuple[StageRow, ...]
    documents: tuple[Document, ...] = ()
    """Further documents that shown generations read, for their lineage."""
    recipe: str
    """Resolved configuration, pretty JSON."""
    environment: Mapping[str, str] = field(default_factory=dict)
