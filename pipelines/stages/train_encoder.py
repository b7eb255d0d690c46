"""Fits a small CLIP: the encoder that retrieves, or the scorer that judges."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pipelines.errors import UsageError
from pipelines.models import CONFIG, TOKENIZER, WEIGHTS, device, pin_threads
from pipelines.records import documents_of, image_array, log_table
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.stage import FitOutput, FitStage, Inputs, StageConfig, Workspace
from pipelines.training_events import TrainingEvents
from racm3.training.encoder import EncoderTrainingConfig
from racm3.training.records import LogRow
from storage_schemas.fingerprint import canonical_json

if TYPE_CHECKING:
    from racm3.training.encoder import FittedEncoder, Pairs

__all__ = ["Config", "TrainEncoder"]


class Config(StageConfig):
    """Shape, noise and schedule."""

    training: EncoderTrainingConfig = Field(default_factory=EncoderTrainingConfig)
    validation_pairs: int = Field(512, ge=2, description="held-out pairs measured, at most")


class TrainEncoder(FitStage[Config]):
    """`encoder` or `scorer` from the pairs of the selected documents.

    Both kinds are fitted alike; give them another seed and shape, so that what retrieves does not
    also score. `validation` documents, where there are any, choose the best step.
    """

    name = "train_encoder"
    version = 1
    config_type = Config
    gpu: ClassVar[bool] = True

    def __init__(self, kind: Literal["encoder", "scorer"] = "encoder") -> None:
        self.kind = kind

    def fit(
        self, config: Config, inputs: Inputs, reader: Reader, workspace: Workspace
    ) -> FitOutput:
        """Learns the encoder's own tokenizer, then both towers.

        Raises:
            UsageError: when fewer pairs are selected than one batch takes.
        """
        from racm3.training.encoder import train_encoder

        pin_threads(workspace.threads)
        pairs = _pairs(reader, inputs["documents"])
        if len(pairs.captions) < config.training.batch_size:
            raise UsageError(
                f"train_encoder: {len(pairs.captions)} documents are selected, fewer than "
                f"training.batch_size {config.training.batch_size}; lower it or add documents"
            )
        held_out = None
        if "validation" in inputs and inputs["validation"].tables("documents"):
            held_out = _pairs(reader, inputs["validation"], limit=config.validation_pairs)
        with TrainingEvents(workspace.events) as events:
            fitted = train_encoder(
                pairs,
                config.training,
                validation=held_out if held_out and held_out.captions else None,
                checkpoint_dir=workspace.progress / "checkpoints",
                report=_reporter(config, workspace, events),
                device=device(),
            )
        return FitOutput(
            files=_save(workspace.staging, fitted),
            tables={"training_log": log_table(fitted.result.log)},
            rows_in=len(pairs.captions),
            rows_out=len(pairs.captions),
            facts=_facts(fitted),
        )


def _pairs(reader: Reader, selection: Selection, *, limit: int | None = None) -> Pairs:
    from racm3.training.encoder import Pairs

    columns = ["document_id", "caption", "image"]
    table = documents_of(reader, selection.tables("documents"), columns).slice(0, limit)
    return Pairs(
        captions=table.column("caption").to_pylist(),
        images=[image_array(png) for png in table.column("image").to_pylist()],
    )


def _reporter(config: Config, workspace: Workspace, events: TrainingEvents) -> Any:
    total = config.training.fit.steps or 1

    def report(row: LogRow) -> None:
        events.add(row)
        loss = row.metrics.get("loss", float("nan"))
        workspace.report(row.step, total, f"step {row.step}, {row.split} loss {loss:.3f}")

    return report


def _save(folder: Path, fitted: FittedEncoder) -> dict[str, Path]:
    from safetensors.torch import save_file

    tensors = fitted.model.state_dict().items()
    state = {name: value.detach().cpu().contiguous() for name, value in tensors}
    save_file(state, folder / WEIGHTS)
    (folder / CONFIG).write_bytes(canonical_json(asdict(fitted.spec)))
    tokenizer = json.loads(fitted.spec.tokenizer_json or "null")
    (folder / TOKENIZER).write_bytes(canonical_json(tokenizer))
    return {name: folder / name for name in (CONFIG, WEIGHTS, TOKENIZER)}


def _facts(fitted: FittedEncoder) -> dict[str, Any]:
    result = fitted.result
    best = [row for row in result.log if row.split == "validation" and row.step == result.best_step]
    return {
        "best_step": result.best_step,
        "steps": result.steps,
        "training_flops": result.flops,
        "stopped_by": result.stopped,
        "validation": dict(best[-1].metrics) if best else {},
        "parameters": sum(parameter.numel() for parameter in fitted.model.parameters()),
    }
