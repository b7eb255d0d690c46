"""Fits the VQGAN that turns images into codes and back, or publishes a public checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.errors import UsageError
from pipelines.models import device, pin_threads, weights_digest
from pipelines.records import documents_of, image_stack, log_table
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.stage import FitOutput, FitStage, Inputs, StageConfig, Workspace
from pipelines.training_events import TrainingEvents
from racm3.encoder.clip import ClipSpec
from racm3.image_tokenizer import PRESETS, PublicVQSpec, VQGANConfig, read_state_dict
from racm3.training.image_tokenizer import ImageTokenizerTaskConfig
from racm3.training.records import FitConfig, LogRow
from storage_schemas.fingerprint import digest_of

if TYPE_CHECKING:
    from torch import nn

    from racm3.image_tokenizer import VQGAN, PublicVQ
    from racm3.training.image_tokenizer import Perceptual

__all__ = ["Checkpoint", "Config", "TrainImageTokenizer"]


class Checkpoint(StageConfig):
    """A public VQ tokenizer, by its weights file."""

    file: str = Field(description="safetensors, or of torch.save; names as the original's")
    preset: str | None = Field(
        None, description="a name of racm3.image_tokenizer.PRESETS; none: read off the tensors"
    )
    image_size: int | None = Field(
        None, description="pixels a side that are read and written; none: as the preset"
    )

    @model_validator(mode="after")
    def _shape_is_known(self) -> Self:
        if self.preset is not None and self.preset not in PRESETS:
            near = get_close_matches(self.preset, PRESETS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
            raise ValueError(f"there is no preset {self.preset}; {hint}")
        if self.preset is None and self.image_size is None:
            raise ValueError("give image_size where there is no preset: no tensor tells it")
        self.spec()
        return self

    def spec(self) -> PublicVQSpec | None:
        """The preset at the image size; None without a preset."""
        if self.preset is None:
            return None
        size = self.image_size or PRESETS[self.preset].image_size
        return replace(PRESETS[self.preset], image_size=size)


class Config(StageConfig):
    """Shape, losses and schedule; or a checkpoint, which leaves these unread."""

    pretrained: Checkpoint | None = Field(
        None, description="a public tokenizer that is published as it is; none: one is fitted"
    )
    model: VQGANConfig = Field(default_factory=VQGANConfig)
    task: ImageTokenizerTaskConfig = Field(
        default_factory=ImageTokenizerTaskConfig,
        description="`total_steps` follows `fit.steps` where that is given",
    )
    features: ClipSpec | None = Field(
        None, description="CLIP whose image tower measures `task.perceptual_weight`'s term"
    )
    fit: FitConfig = Field(
        default_factory=lambda: FitConfig(steps=2000, learning_rate=2e-3, weight_decay=0.0)
    )
    validation_images: int = Field(256, ge=1, description="held-out images measured, at most")

    @property
    def image_size(self) -> int:
        """Pixels a side of what the tokenizer reads and writes."""
        if self.pretrained is None:
            return self.model.image_size
        spec = self.pretrained.spec()
        return spec.image_size if spec else self.pretrained.image_size or 0

    @model_validator(mode="after")
    def _codebook_starts(self) -> Self:
        steps = self.fit.steps
        if steps is not None and self.task.warmup_steps >= steps:
            raise ValueError(
                f"task.warmup_steps {self.task.warmup_steps} must be below fit.steps {steps}: "
                "the codebook starts after the warm-up"
            )
        return self

    @model_validator(mode="after")
    def _features_have_a_weight(self) -> Self:
        if (self.features is None) != (self.task.perceptual_weight == 0):
            raise ValueError("task.perceptual_weight > 0 and `features` need each other")
        return self


class TrainImageTokenizer(FitStage[Config]):
    """`image_tokenizer` from the images of the selected documents, or from a public checkpoint.

    Images of another size are resized, without cropping. `validation` documents choose the best
    step; without any, the last one is kept and the facts are measured on the fitted images. A
    checkpoint is checked, measured likewise and published; its training log is empty.
    """

    name = "train_image_tokenizer"
    version = 1
    kind = "image_tokenizer"
    config_type = Config
    gpu: ClassVar[bool] = True

    def environment(self, config: Config) -> str:
        """Weights given as files are known by their digests, not by their paths.

        Raises:
            UsageError: when there is no such checkpoint.
        """
        files = [config.features.pretrained] if config.features else []
        given = [file for file in files if file and Path(file).is_file()]
        if config.pretrained is not None:
            if not Path(config.pretrained.file).is_file():
                raise UsageError(
                    f"image_tokenizer.pretrained.file: there is no file {config.pretrained.file}"
                )
            given.append(config.pretrained.file)
        return digest_of([weights_digest(file) for file in given]) if given else ""

    def fit(
        self, config: Config, inputs: Inputs, reader: Reader, workspace: Workspace
    ) -> FitOutput:
        """Fits until the steps, the FLOPs budget or the patience are used up.

        Raises:
            UsageError: when no document is selected, or a checkpoint is not what it shall be.
        """
        pin_threads(workspace.threads)
        held_out = _images(reader, inputs.get("validation"), config, config.validation_images)
        if config.pretrained is not None:
            if not len(held_out):
                held_out = _images(reader, inputs["documents"], config, config.validation_images)
            return _published(config.pretrained, held_out, workspace)
        images = _images(reader, inputs["documents"], config)
        if not len(images):
            raise UsageError("train_image_tokenizer: no document is selected; check fit_sources")
        return _fitted(config, images, held_out, workspace)


def _fitted(
    config: Config,
    images: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    workspace: Workspace,
) -> FitOutput:
    from racm3.image_tokenizer.stored import save_image_tokenizer
    from racm3.training.fit import fit
    from racm3.training.image_tokenizer import ImageTokenizerTask, reconstruction_metrics

    task = ImageTokenizerTask(
        images,
        config.model,
        replace(config.task, total_steps=config.fit.steps or config.task.total_steps),
        perceptual=_perceptual(config.features),
        device=device(),
    )
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
    return FitOutput(
        files=save_image_tokenizer(tokenizer, workspace.staging),
        tables={"training_log": log_table(result.log)},
        rows_in=len(images),
        rows_out=len(images),
        facts={
            "best_step": result.best_step,
            "steps": result.steps,
            "training_flops": result.flops,
            "stopped_by": result.stopped,
            "psnr_held_out": bool(len(held_out)),
        }
        | _facts(tokenizer, quality, measured),
    )


def _published(
    checkpoint: Checkpoint, images: NDArray[np.uint8], workspace: Workspace
) -> FitOutput:
    """The checkpoint's tokenizer as an artifact. No document shaped it, so none counts as read."""
    from racm3.image_tokenizer.public import public_vq_of
    from racm3.image_tokenizer.public_layout import infer_spec, is_ignored
    from racm3.image_tokenizer.stored import save_image_tokenizer
    from racm3.training.reconstruction import reconstruction_quality

    try:
        state = read_state_dict(Path(checkpoint.file))
        shapes = {name: value.shape for name, value in state.items()}
        spec = checkpoint.spec() or infer_spec(shapes, image_size=checkpoint.image_size or 0)
        tokenizer = public_vq_of(spec, state, device=device())
    except ValueError as error:
        raise UsageError(f"image_tokenizer.pretrained: {checkpoint.file}: {error}") from error

    def report(done: int) -> None:
        workspace.report(done, len(images), f"{done} images encoded and decoded")

    quality = reconstruction_quality(tokenizer, images, report=report)
    return FitOutput(
        files=save_image_tokenizer(tokenizer, workspace.staging),
        tables={"training_log": log_table(())},
        facts={
            "checkpoint": Path(checkpoint.file).name,
            "checkpoint_sha256": weights_digest(checkpoint.file),
            "ignored_tensors": sum(is_ignored(name) for name in state),
        }
        | _facts(tokenizer, quality, images),
    )


def _facts(
    tokenizer: VQGAN | PublicVQ, quality: Mapping[str, float], measured: NDArray[np.uint8]
) -> dict[str, Any]:
    """What is known of every tokenizer: the floor under all images it will write."""
    return {
        "psnr": _finite(quality["psnr"]),
        "psnr_images": len(measured),
        "codes_used": round(quality["codes_used"] * tokenizer.codebook_size),
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
    }


def _images(
    reader: Reader, selection: Selection | None, config: Config, limit: int | None = None
) -> NDArray[np.uint8]:
    shards = selection.tables("documents") if selection is not None else ()
    table = documents_of(reader, shards, ["document_id", "image"]).slice(0, limit)
    return image_stack(table.column("image").to_pylist(), config.image_size)


def _perceptual(features: ClipSpec | None) -> Perceptual | None:
    from racm3.training.perceptual import load_feature_distance

    return load_feature_distance(features, device=device()) if features is not None else None


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
