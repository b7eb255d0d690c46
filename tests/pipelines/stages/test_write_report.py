from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pipelines.runtime.context import start_run
from pipelines.runtime.executor import LocalExecutor
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.run import StageCall, run_stage
from pipelines.runtime.stage import FitOutput, FitStage, StageConfig
from pipelines.runtime.store import LocalStore
from pipelines.stages.write_report import PAGE, Config, WriteReport
from storage_schemas.manifest import Manifest
from storage_schemas.tables import TABLES

HOSTILE = "<script>alert('caption')</script>"


class _GivenConfig(StageConfig):
    mark: str
    stream: dict[str, int] | None = None


class _Given(FitStage[_GivenConfig]):
    """Publishes tables as they are, through the front door."""

    name, version, config_type = "given", 1, _GivenConfig

    def __init__(self, kind: str, tables: Mapping[str, pa.Table], facts: dict[str, Any]) -> None:
        self.kind, self.tables, self.facts = kind, tables, facts

    def fit(self, *_: Any) -> FitOutput:
        return FitOutput(tables=self.tables, facts=self.facts)


def _png(color: str) -> bytes:
    sink = BytesIO()
    Image.new("RGB", (8, 8), color).save(sink, "PNG")
    return sink.getvalue()


def _rows(kind: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows with what they do not name filled in by type."""
    schema = TABLES[kind].arrow
    empty = {
        f.name: None if f.nullable else [] if pa.types.is_list(f.type)
        else "" if pa.types.is_string(f.type) else 0
        for f in schema
    }  # fmt: skip
    return pa.Table.from_pylist([empty | row for row in rows], schema=schema)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _Run:
    """A store with what a finished run would have put there."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalStore(folder)
        self.run = start_run(self.store, "test", {})
        self.inputs: dict[str, Manifest] = {
            "documents": self._put("documents", self._documents()),
            "source_rows": self._put("source_rows", self._source_rows()),
            "scores": self._put("scores", self._scores()),
        }
        for model, k in (("ra", 2), ("vanilla", 0)):
            self.inputs[f"generator.{model}"] = self._generator(model, k)
        for model, memory in (("ra", "restricted"), ("vanilla", None)):
            rows = self._generations(model, memory)
            self.inputs[f"generations.{model}.{memory or 'none'}"] = self._put("generations", rows)

    def _run(self, stage: Any, config: Any, **inputs: Manifest) -> Manifest:
        selected = {name: Selection.of(manifest) for name, manifest in inputs.items()}
        call = StageCall(stage=stage, config=config, inputs=selected, label=stage.kind)
        return run_stage(call, store=self.store, executor=LocalExecutor(), run=self.run)

    def _put(self, kind: str, table: pa.Table) -> Manifest:
        mark = _digest(repr(table.to_pylist()))
        return self._run(_Given(kind, {kind: table}, {}), _GivenConfig(mark=mark))

    def report(self, *, run_id: str = "", config: Config | None = None) -> tuple[Manifest, str]:
        """The report's manifest, and its page."""
        told = tuple(self.inputs.items())
        edges = (("documents", "generator.ra"), ("generator.ra", "scores"))
        stage = WriteReport(told, edges, json.dumps({"namespace": "made-up"}), run_id=run_id)
        manifest = self._run(stage, config or Config(), **self.inputs)
        page = Reader(self.store).files(Selection.of(manifest))[PAGE]
        return manifest, page.read_text(encoding="utf-8")

    @staticmethod
    def _documents() -> pa.Table:
        return _rows(
            "documents",
            [
                {
                    "row_id": f"row{i}{outcome}", "document_id": _digest(f"d{i}"),
                    "caption": f"{HOSTILE} number {i}", "image": _png("red"), "source": "drawings",
                    "role": "evaluation", "outcome": outcome,
                }
                for i, outcome in [(i, "kept") for i in range(8)] + [(0, "duplicate")]
            ],
        )  # fmt: skip

    @staticmethod
    def _source_rows() -> pa.Table:
        rows = [
            {"row_id": f"row{i}kept", "url": f"http://u:pw@host.invalid/{i}.png", "row_index": i,
             "file_sha256": _digest("file"), "outcome": "kept"}
            for i in range(8)
        ]  # fmt: skip
        return _rows("source_rows", rows)

    @staticmethod
    def _scores() -> pa.Table:
        row = {"metric": "image_perplexity", "model": "ra", "task": "image", "set": "unseen",
               "k": 2, "memory": "restricted", "value": 27.99, "n": 5, "group": ""}  # fmt: skip
        ratio = {"metric": "perplexity_ratio", "value": 0.9, "low": 0.85, "high": 0.95}
        return _rows("scores", [row, row | ratio])

    @staticmethod
    def _generations(model: str, memory: str | None) -> pa.Table:
        fed = [_digest("d6"), _digest("d7")] if memory else []
        return _rows(
            "generations",
            [
                {
                    "generation_id": _digest(f"{model}{i}{task}"), "model": model, "task": task,
                    "generator": _digest(model), "prompt": HOSTILE if task == "image" else None,
                    "prompt_id": _digest(f"d{i}"), "set": "unseen",
                    "group": "flags" if i < 3 else None, "memory": memory, "k": len(fed),
                    "contexts": fed, "sampler": "{}", "seed": i,
                    "image": _png("blue") if task == "image" else None,
                    "caption": HOSTILE if task == "caption" else None,
                }
                for i in range(5)
                for task in ("image", "caption")
            ],
        )  # fmt: skip

    def _generator(self, model: str, max_k: int) -> Manifest:
        facts = {"steps": 9, "best_step": 8, "training_flops": 2e14, "training_tokens": 1e6,
                 "validation_loss": 3.1, "parameters": 12345}  # fmt: skip
        log = [
            {"step": n, "split": split, "metric": metric, "value": 5.0 / n, "flops": n * 1e9}
            for n in (1, 2, 3)
            for split in ("train", "validation")
            for metric in ("loss", "image_ppl_k0", "image_ppl_k2", "image_ppl_wrong")
        ]  # fmt: skip
        tables = {"training_log": _rows("training_log", log)}
        config = _GivenConfig(mark=model, stream={"max_k": max_k})
        return self._run(_Given("generator", tables, facts), config)


@pytest.fixture
def run(tmp_path: Path) -> _Run:
    return _Run(tmp_path)


def test_the_page_holds_results_pictures_and_origins(run: _Run) -> None:
    manifest, page = run.report()
    assert manifest.kind == "report"
    for part in ("27.99", "−10.0 %", "12 345".replace(" ", "\N{THIN SPACE}"), "made-up"):
        assert part in page, part
    assert "Drawn from a caption &middot; unseen: flags" in page
    assert "Written from an image &middot; unseen: the rest" in page
    assert page.count("<polyline") == 2 + 2 + 4
    assert page.count('id="d-') == 5 + 2
    assert page.count('id="g-') == 5 * 2 * 2
    assert page.count("<img") == 5 * (2 + 2 + 1) + 5 * (1 + 2)
    assert "http://host.invalid/6.png" in page
    assert "row 6 of" in page
    assert "pw@" not in page


def test_hostile_rows_of_the_store_stay_text(run: _Run) -> None:
    _, page = run.report()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_same_results_make_no_second_page(run: _Run) -> None:
    first, page = run.report(run_id="one")
    again, same = run.report(run_id="two")
    assert again.artifact_id == first.artifact_id
    assert page == same
    other, _ = run.report(config=Config(images_per_slice=1))
    assert other.artifact_id != first.artifact_id


def test_artifacts_of_other_runs_are_shown_as_reused(run: _Run) -> None:
    _, page = run.report(run_id="another")
    assert 'class="kept"' in page
    assert 'class="done"' not in page


def test_artifacts_of_this_run_are_shown_as_computed(run: _Run) -> None:
    _, page = run.report(run_id=run.run.run_id)
    assert 'class="done"' in page
    assert 'class="kept"' not in page


def test_slices_show_at_most_so_many(run: _Run) -> None:
    manifest, page = run.report(config=Config(images_per_slice=2, captions_per_slice=0))
    assert manifest.facts["samples"] == 4
    assert "Written from" not in page


def test_shown_prompts_are_those_that_every_column_answered(run: _Run) -> None:
    rows = run._generations("vanilla", None).to_pylist()
    few = [row for row in rows if row["prompt_id"] in {_digest("d1"), _digest("d4")}]
    run.inputs["generations.vanilla.none"] = run._put("generations", _rows("generations", few))
    manifest, page = run.report()
    assert manifest.facts["samples"] == 4
    assert ">not drawn<" not in page
