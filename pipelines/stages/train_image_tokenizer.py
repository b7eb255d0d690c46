"""Fits the VQGAN that turns images into codes and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.errors import UsageError
from pipelines.models import CONFIG, WEIGHTS, device, pin_threads
from pipelines.records import documents_of, image_stack, log_table
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.stage import FitOutput, FitStage, Inputs, StageConfig, Workspace
from pipelines.training_events import TrainingEvents
from racm3.image_tokenizer.vqgan import VQGANConfig
from racm3.training.image_tokenizer import ImageTokenizerTaskConfig
from racm3.training.records import FitConfig, LogRow
from storage_schemas.fingerprint import canonical_json

if TYPE_CHECKING:
    from torch import nn

    from racm3.image_tokenizer.vqgan import VQGAN

__all__ = ["Config", "TrainImageTokenizer"]


class Config(StageConfig):
    """Shape, losses and schedule."""

    model: VQGANConfig = Field(default_factory=VQGANConfig)
    task: ImageTokenizerTaskConfig = Field(
        default_factory=ImageTokenizerTaskConfig,
        description="`total_steps` follows `fit.steps` where that is given",
    )
    fit: FitConfig = Field(
        default_factory=lambda: FitConfig(steps=2000, learning_rate=2e-3, weight_decay=0.0)
    )
    validation_images: int = Field(256, ge=1, description="held-out images measured, at most")

    @model_validator(mode="after")
    def _codebook_starts(self) -> Self:
        steps = self.fit.steps
        if steps is not None and self.task.warmup_steps >= steps:
            raise ValueError(
                f"task.warmup_steps {self.task.warmup_steps} must be below fit.steps {steps}: "
                "the codebook starts after the warm-up"
            )
        return self


class TrainImageTokenizer(FitStage[Config]):
    """`image_tokenizer` from the images of the selected documents.

    Images of another size are resized, without cropping. `validation` documents choose the best
    step; without any, the last one is kept and the facts are measured on the fitted images.
    """

    name = "train_image_tokenizer"
    version = 1
    kind = "image_tokenizer"
    config_type = Config
    gpu: ClassVar[bool] = True

    def fit(
        self, config: Config, inputs: Inputs, reader: Reader, workspace: Workspace
    ) -> FitOutput:
        """Fits until the steps, the FLOPs budget or the patience are used up.

        Raises:
            UsageError: when no document is selected.
        """
        from racm3.training.fit import fit
        from racm3.training.image_tokenizer import ImageTokenizerTask, reconstruction_metrics

        pin_threads(workspace.threads)
        size = config.model.image_size
        images = _images(reader, inputs["documents"], size)
        if not len(images):
            raise UsageError("train_image_tokenizer: no document is selected; check fit_sources")
        held_out = images[:0]
        if "validation" in inputs:
            held_out = _images(reader, inputs["validation"], size)[: config.validation_images]
        task_config = replace(config.task, total_steps=config.fit.steps or config.task.total_steps)
        task = ImageTokenizerTask(images, config.model, task_config, device=device())
        with TrainingEvents(workspace.events) as events:
            result = fit(
                task,
                config.fit,
                checkpoint_dir=workspace.progress / "checkpoints",
                validate=_validation(held_out) if len(held_out) else None,
                report=_reporter(config.fit, workspace, events),
            )
        tokenizer = task.tokenizer.eval()
        measured = held_out if len(held_out) else images[: config.validation_images]
        quality = reconstruction_metrics(tokenizer, measured)
        facts: dict[str, Any] = {
            "best_step": result.best_step,
            "steps": result.steps,
            "training_flops": result.flops,
            "stopped_by": result.stopped,
            "psnr": _finite(quality["psnr"]),
            "psnr_images": len(measured),
            "psnr_held_out": bool(len(held_out)),
            "codes_used": round(quality["codes_used"] * tokenizer.codebook_size),
            "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        }
        return FitOutput(
            files=_save(workspace.staging, tokenizer),
            tables={"training_log": log_table(result.log)},
            rows_in=len(images),
            rows_out=len(images),
            facts=facts,
        )


def _images(reader: Reader, selection: Selection, size: int) -> NDArray[np.uint8]:
    table = documents_of(reader, selection.tables("documents"), ["document_id", "image"])
    return image_stack(table.column("image").to_pylist(), size)


def _validation(images: NDArray[np.uint8]) -> Callable[[nn.Module], dict[str, float]]:
    from racm3.training.image_tokenizer import TokenizerWithCritic, reconstruction_metrics

    def validate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, TokenizerWithCritic)
        return reconstruction_metrics(model.tokenizer, images)

    return validate


def _reporter(
    fit: FitConfig, workspace: Workspace, events: TrainingEvents
) -> Callable[[LogRow], None]:
    total = fit.steps or 1

    def report(row: LogRow) -> None:
        events.add(row)
        quality = row.metrics.get("psnr", math.nan)
        workspace.report(row.step, total, f"step {row.step}, {row.split} PSNR {quality:.1f} dB")

    return report


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _save(folder: Path, tokenizer: VQGAN) -> dict[str, Path]:
    from safetensors.torch import save_file

    tensors = tokenizer.state_dict().items()
    state = {name: value.detach().cpu().contiguous() for name, value in tensors}
    save_file(state, folder / WEIGHTS)
    (folder / CONFIG).write_bytes(canonical_json(asdict(tokenizer.config)))
    return {name: folder / name for name in (CONFIG, WEIGHTS)}
