from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from pipelines.report.model import (
    Curve,
    Document,
    Generation,
    ModelFacts,
    Panel,
    Report,
    Sample,
    ScoreRow,
    Sheet,
    StageRow,
)
from pipelines.report.sheets import picture


def _png(color: str) -> bytes:
    sink = BytesIO()
    Image.new("RGB", (8, 8), color).save(sink, "PNG")
    return sink.getvalue()


def _document(name: str, caption: str, url: str) -> Document:
    return Document(
        document_id=name * 64,
        caption=caption,
        image=picture(_png("red")),
        source="drawings",
        role="train",
        url=url,
        row="row 7 of abc",
    )


def _score(metric: str, model: str, value: float, **more: Any) -> ScoreRow:
    given: dict[str, Any] = {
        "metric": metric,
        "model": model,
        "task": "image",
        "set": "familiar",
        "group": "",
        "k": 0,
        "memory": "",
        "value": value,
        "n": 212,
        "unit": "",
        "low": value - 0.05,
        "high": value + 0.05,
        "protocol": f"how {metric} is measured",
    }
    return ScoreRow(**(given | more))


def _stage(label: str, *reads: str, **more: Any) -> StageRow:
    given: dict[str, Any] = {
        "label": label,
        "kind": label,
        "artifact_id": "a" * 64,
        "reads": reads,
        "rows_in": 10,
        "rows_out": 10,
        "dropped": {},
        "counts": {},
        "seconds": 2.5,
        "shards": 1,
        "executed": 1,
        "reused": False,
    }
    return StageRow(**(given | more))


@dataclass(frozen=True)
class Made:
    """Ways to make parts of a report."""

    score = staticmethod(_score)
    stage = staticmethod(_stage)
    png = staticmethod(_png)
    document = staticmethod(_document)

    @staticmethod
    def report(caption: str = "a red circle", url: str = "http://host.invalid/1.png") -> Report:
        """A small report whose captions and links are all the given ones."""
        truth, context = _document("1", caption, url), _document("2", caption, url)
        ours, base = (
            Generation(
                generation_id=digit * 64,
                model=model,
                checkpoint="c" * 64,
                task=task,
                memory="restricted" if fed else "",
                k=len(fed),
                contexts=fed,
                prompt_id=truth.document_id,
                seed=3,
                sampler="{}",
                image=picture(_png("blue")) if task == "image" else None,
                caption=None if task == "image" else caption,
            )
            for digit, model, task, fed in (
                ("3", "ra", "image", (context.document_id,)),
                ("4", "vanilla", "caption", ()),
            )
        )
        sheets = [
            Sheet(
                title="familiar",
                task=task,
                columns=("RA-CM3", "vanilla CM3"),
                samples=(
                    Sample(prompt=caption, truth=truth, contexts=(context,), answers=answers),
                ),
                out_of=64,
            )
            for task, answers in (("image", (ours, None)), ("caption", (None, base)))
        ]
        facts = {"parameters": 5, "steps": 9, "best_step": 8, "tokens": 1e6, "seconds": 3.0}
        models = [
            ModelFacts(
                name=name, artifact_id="c" * 64, flops=2e14, validation_loss=3.1, max_k=k, **facts
            )
            for name, k in (("ra", 2), ("vanilla", 0))
        ]
        return Report(
            title="Results",
            run_id="run-1",
            created_at="2026-01-01",
            focus="ra",
            baseline="vanilla",
            scores=(
                _score("perplexity_ratio", "ra", 0.897, k=2, memory="restricted"),
                _score("token_accuracy_ratio", "ra", 1.9, k=2, memory="restricted"),
                _score("image_perplexity", "ra", 27.99, k=2, memory="restricted"),
                _score("image_perplexity", "ra", 34.9, k=2, memory="wrong"),
                _score("image_perplexity", "vanilla", 31.2),
                _score("psnr", "copy the top document", 11.4, k=1, memory="restricted", unit="dB"),
            ),
            models=tuple(models),
            sheets=tuple(sheets),
            panels=(
                Panel(
                    title="Loss",
                    x_label="step",
                    y_label="nats",
                    curves=(Curve(name="train", x=(1.0, 2.0, 3.0), y=(5.0, 4.0, 3.0)),),
                ),
            ),
            stages=(
                _stage("ingest", dropped={"too_small": 2, "duplicate_row": 1}, rows_out=7),
                _stage("train[ra]", "ingest", reused=True, counts={"tokens_cut": 4}),
            ),
            recipe='{"note": "' + caption.replace('"', "'") + '"}',
            environment={"torch": "1.2.3"},
        )


@pytest.fixture
def made() -> Made:
    return Made()
