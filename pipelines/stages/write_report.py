"""Writes the report of a run: one HTML page with scores, pictures, and where all came from."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipelines.records import samples_of
from pipelines.report.model import (
    Curve,
    Document,
    ModelFacts,
    Panel,
    Report,
    ScoreRow,
    Sheet,
    StageRow,
)
from pipelines.report.page import render
from pipelines.report.sheets import REST, choose_prompts, make_sheet, picture, slice_of
from pipelines.report.tables import model_title
from pipelines.runtime.context import environment
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import FitOutput, FitStage, Inputs, StageConfig, Workspace
from storage_schemas.manifest import Manifest

__all__ = ["PAGE", "Config", "WriteReport"]

PAGE = "report.html"
"""Name of the page among the artifact's files."""

Row = Mapping[str, Any]


class Config(StageConfig):
    """What the page shows."""

    title: str = Field("RA-CM3: results of a run", description="heading of the page")
    focus: str | None = Field(
        None, description="generator the page is about; none: the first that reads contexts"
    )
    baseline: str = Field("vanilla", description="generator it is compared with")
    images_per_slice: int = Field(8, ge=0, description="prompts drawn, of each set and group")
    captions_per_slice: int = Field(5, ge=0, description="images captioned, of each set and group")


class WriteReport(FitStage[Config]):
    """`report` from `scores`, `documents`, `source_rows`, `generator.*` and `generations.*`.

    What the page tells about the run itself (times, what was reused, the recipe) comes through the
    constructor and stays out of the artifact's id: the same results make no second page.
    """

    name = "write_report"
    version = 2
    kind = "report"
    config_type = Config

    def __init__(
        self,
        manifests: tuple[tuple[str, Manifest], ...],
        edges: tuple[tuple[str, str], ...],
        recipe_json: str,
        *,
        run_id: str = "",
    ) -> None:
        """Takes what is known about the run.

        Args:
            manifests: label and artifact of each stage call, in the order of the run.
            edges: pairs of labels (needed, needing).
            recipe_json: the resolved configuration.
            run_id: of this run; artifacts of other runs are shown as reused. Empty: none is.
        """
        self.manifests, self.edges = manifests, edges
        self.recipe_json, self.run_id = recipe_json, run_id

    def fit(
        self, config: Config, inputs: Inputs, reader: Reader, workspace: Workspace
    ) -> FitOutput:
        """Reads the results and renders the page."""
        work = _Work(config, inputs, reader, {m.artifact_id: m for _, m in self.manifests})
        workspace.report(0, 2, "choosing what is shown")
        sheets, documents = work.sheets()
        report = Report(
            title=config.title,
            run_id=self.run_id,
            created_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            focus=work.focus,
            baseline=config.baseline,
            scores=work.scores(),
            models=work.models,
            sheets=sheets,
            panels=(*work.generator_panels(), *_other_panels(self.manifests, reader)),
            stages=self._stages(),
            documents=documents,
            recipe=json.dumps(json.loads(self.recipe_json), indent=2, ensure_ascii=False),
            environment=environment(),
        )
        workspace.report(1, 2, "rendering")
        path = workspace.staging / PAGE
        path.write_text(render(report), encoding="utf-8")
        shown = sum(len(sheet.samples) for sheet in sheets)
        return FitOutput(files={PAGE: path}, facts={"samples": shown})

    def _stages(self) -> tuple[StageRow, ...]:
        return tuple(
            StageRow(
                label=label,
                kind=manifest.kind,
                artifact_id=manifest.artifact_id,
                reads=tuple(need for need, needing in self.edges if needing == label),
                rows_in=manifest.rows_in,
                rows_out=manifest.rows_out,
                dropped=dict(manifest.dropped),
                counts=dict(manifest.counts),
                seconds=manifest.seconds,
                shards=_pieces(manifest),
                executed=manifest.shards_executed,
                reused=bool(self.run_id) and manifest.run_id != self.run_id,
            )
            for label, manifest in self.manifests
        )


class _Work:
    """Reads what the page shows, and no more of the large tables than that."""

    def __init__(
        self, config: Config, inputs: Inputs, reader: Reader, known: Mapping[str, Manifest]
    ) -> None:
        self.config, self.inputs, self.reader, self.known = config, inputs, reader, known
        self.models = tuple(_model(name, inputs[f"generator.{name}"].manifest) for name in
                            self._named("generator."))  # fmt: skip
        readers = [model.name for model in self.models if model.max_k]
        self.focus = config.focus or next(iter(readers), "ra_cm3")
        order = {self.focus: 0, config.baseline: 1}
        self.models = tuple(sorted(self.models, key=lambda m: (order.get(m.name, 2), m.name)))

    def _named(self, prefix: str) -> list[str]:
        return sorted(n.removeprefix(prefix) for n in self.inputs if n.startswith(prefix))

    def scores(self) -> tuple[ScoreRow, ...]:
        """All rows of the score table."""
        table = self.reader.tables(self.inputs["scores"].tables("scores"))
        rows = table.drop_columns(["better", "reference"]).to_pylist()
        texts = ("set", "group", "memory")
        return tuple(ScoreRow(**(row | {name: row[name] or "" for name in texts})) for row in rows)

    # --- samples --------------------------------------------------------------------------

    def sheets(self) -> tuple[tuple[Sheet, ...], tuple[Document, ...]]:
        """The sample sheets, and all documents that they show or that shown samples read."""
        planned = [p for task in ("image", "caption") for p in self._planned(task)]
        wanted = {
            document_id
            for _, _, prompts, columns, _ in planned
            for prompt in prompts
            for rows in columns.values()
            for document_id in [prompt, *(rows[prompt]["contexts"] if prompt in rows else ())]
        }
        documents = self._documents(wanted)
        sheets = tuple(
            make_sheet(task, place, prompts, columns, documents=documents, out_of=out_of)
            for task, place, prompts, columns, out_of in planned
        )
        return sheets, tuple(documents.values())

    def _planned(self, task: str) -> list[tuple[str, tuple[str, str], list[str], Any, int]]:
        """What is on each sheet: task, slice, prompts, columns, number of prompts there were."""
        count = self.config.images_per_slice if task == "image" else self.config.captions_per_slice
        columns = {column: self._rows(*column, task) for column in self._columns()}
        by_place: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for by_prompt in columns.values():
            for row in by_prompt.values():
                by_place[slice_of(row)].append(row)
        sets_with_groups = {name for name, group in by_place if group}
        planned = []
        for (name, group), rows in sorted(by_place.items(), key=_place_order):
            ids = {row["prompt_id"] for row in rows}
            present = {c: r for c, r in columns.items() if ids & r.keys()}
            shown_as = REST if not group and name in sets_with_groups else group
            # side by side needs prompts that every column answered; they lead where there are any
            common = ids.intersection(*(r.keys() for r in present.values())) or ids
            prompts = choose_prompts([row for row in rows if row["prompt_id"] in common], count)
            if prompts:
                planned.append((task, (name, shown_as), prompts, present, len(common)))
        return planned

    def _columns(self) -> list[tuple[str, str]]:
        """(model, memory) of all generations: the focus first, its largest memory first."""
        columns = [n.rpartition(".")[::2] for n in self._named("generations.")]
        names = [model.name for model in self.models]
        sizes = self._memory_sizes()
        return sorted(
            columns,
            key=lambda c: (
                names.index(c[0]) if c[0] in names else len(names),
                -sizes.get(c[1], 0),
                c[1],
            ),
        )

    def _memory_sizes(self) -> dict[str, int]:
        """Documents in the memory behind each `examples.*` input, where the run tells."""
        return {
            name: _memory_size(self.inputs[f"examples.{name}"].manifest, self.known)
            for name in self._named("examples.")
        }

    def _rows(self, model: str, memory: str, task: str) -> dict[str, Row]:
        """Samples of least seed by prompt, of one generations artifact; free prompts left out."""
        selection = self.inputs[f"generations.{model}.{memory}"]
        table = self.reader.tables(selection.tables("generations"))
        return {prompt: samples[0] for prompt, samples in samples_of(table, task).items()}

    def _documents(self, wanted: set[str]) -> dict[str, Document]:
        """The documents asked for, with picture and origin."""
        columns = ["document_id", "row_id", "source", "role", "caption", "image", "outcome"]
        rows = _matching(self.reader, self.inputs["documents"].tables("documents"), columns, wanted)
        rows = [row for row in rows if row["outcome"] == "kept"]
        origins = {}
        if "source_rows" in self.inputs:
            shards = self.inputs["source_rows"].tables("source_rows")
            columns = ["row_id", "url", "file_sha256", "row_index"]
            ids = {row["row_id"] for row in rows}
            origins = {r["row_id"]: r for r in _matching(self.reader, shards, columns, ids)}
        return {
            row["document_id"]: _document(row, origins.get(row["row_id"]))
            for row in sorted(rows, key=lambda row: row["document_id"])
        }

    # --- training -------------------------------------------------------------------------

    def generator_panels(self) -> list[Panel]:
        """Losses of all generators against compute, then perplexities of the focus."""
        logs = {m.name: self._log(f"generator.{m.name}") for m in self.models}
        panels = [
            Panel(
                title=f"{split.capitalize()} loss of the generators",
                x_label="training compute, FLOP",
                y_label="nats a token",
                curves=tuple(
                    _curve(model_title(name), log, split, "loss", "flops")
                    for name, log in logs.items()
                ),
            )
            for split in ("validation", "train")
        ]
        return panels + [
            Panel(
                title=f"Validation {what} perplexity while training",
                x_label="training compute, FLOP",
                y_label=f"perplexity of {what} tokens; wrong: as many random documents",
                curves=tuple(self._perplexities(logs, what)),
            )
            for what in ("image", "caption")
        ]

    def _perplexities(self, logs: Mapping[str, list[Row]], what: str) -> Iterable[Curve]:
        for name, log in logs.items():
            prefix = f"{what}_ppl_"
            metrics = sorted({r["metric"] for r in log if r["metric"].startswith(prefix)})
            for metric in metrics if name == self.focus else [f"{prefix}k0"]:
                condition = metric.removeprefix(prefix)
                said = "wrong contexts" if condition == "wrong" else f"K = {condition[1:]}"
                title = f"{model_title(name)}, {said}"
                yield _curve(title, log, "validation", metric, "flops", faint=name != self.focus)

    def _log(self, name: str) -> list[Row]:
        return _log_rows(self.reader, self.inputs[name].manifest)


def _pieces(manifest: Manifest) -> int:
    """Units of work: shards that carry tags; what a fit makes carries none and is one piece."""
    return max(1, sum(bool(shard.tags) for shard in manifest.tables()))


def _memory_size(manifest: Manifest, known: Mapping[str, Manifest]) -> int:
    """Documents in the one memory that an artifact was made with; 0 where it is not known."""
    if manifest.kind == "memory":
        return manifest.rows_out
    above = [known[ref.artifact_id] for ref in manifest.inputs if ref.artifact_id in known]
    return max((_memory_size(one, known) for one in above), default=0)


def _place_order(item: tuple[tuple[str, str], Any]) -> tuple[bool, str, bool, str]:
    (name, group), _ = item
    return name != "familiar", name, group == "", group


def _model(name: str, manifest: Manifest) -> ModelFacts:
    facts = manifest.facts
    return ModelFacts(
        name=name,
        artifact_id=manifest.artifact_id,
        parameters=int(facts.get("parameters", 0)),
        steps=int(facts["steps"]),
        best_step=int(facts["best_step"]),
        flops=float(facts["training_flops"]),
        tokens=float(facts["training_tokens"]),
        validation_loss=facts["validation_loss"],
        seconds=manifest.seconds,
        max_k=int(manifest.config["stream"]["max_k"]),
        stopped_by=str(facts.get("stopped_by", "")),
    )


def _document(row: Row, origin: Row | None) -> Document:
    where = f"row {origin['row_index']} of {origin['file_sha256'][:12]}" if origin else ""
    return Document(
        document_id=row["document_id"],
        caption=row["caption"] or "",
        image=picture(row["image"]),
        source=row["source"],
        role=row["role"],
        url=origin["url"] if origin else None,
        row=where,
    )


def _matching(
    reader: Reader, shards: Iterable[Any], columns: Sequence[str], wanted: set[str]
) -> list[Row]:
    """Rows whose first column is among `wanted`, one shard in memory at a time."""
    values = pa.array(sorted(wanted), pa.string())
    found: list[Row] = []
    for shard in shards:
        table = reader.table(shard, list(columns))
        found += table.filter(pc.is_in(table.column(columns[0]), value_set=values)).to_pylist()
    return found


def _log_rows(reader: Reader, manifest: Manifest) -> list[Row]:
    return [
        row for shard in manifest.tables("training_log") for row in reader.table(shard).to_pylist()
    ]


def _curve(
    name: str, log: Sequence[Row], split: str, metric: str, x: str, *, faint: bool = False
) -> Curve:
    points = sorted(
        (float(row[x]), float(row["value"]))
        for row in log
        if row["split"] == split and row["metric"] == metric
    )
    return Curve(
        name=name, x=tuple(a for a, _ in points), y=tuple(b for _, b in points), faint=faint
    )


def _other_panels(manifests: Iterable[tuple[str, Manifest]], reader: Reader) -> list[Panel]:
    """Losses of everything else that was fitted: encoder, scorer, image tokenizer."""
    panels = []
    for label, manifest in manifests:
        log = [] if manifest.kind == "generator" else _log_rows(reader, manifest)
        if not log:  # nothing was fitted, as with a tokenizer from a checkpoint
            continue
        panels.append(
            Panel(
                title=f"Loss of {label}",
                x_label="step",
                y_label="loss of the stage's own objective",
                curves=tuple(
                    _curve(split, log, split, "loss", "step") for split in ("train", "validation")
                ),
            )
        )
    return panels
