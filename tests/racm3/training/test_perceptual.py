from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from racm3.encoder import ClipSpec, EncoderError
from racm3.encoder.clip import load_image_tower, make_clip
from racm3.image_tokenizer import VQGANConfig
from racm3.training.fit import FitConfig, fit
from racm3.training.image_tokenizer import ImageTokenizerTask, ImageTokenizerTaskConfig
from racm3.training.perceptual import FeatureDistance, load_feature_distance

TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"layers": 2, "width": 32, "head_width": 32, "patch_size": 8},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8},
}


@pytest.fixture(scope="module", params=TOWERS)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ClipSpec:
    text = {"context_length": 8, "vocab_size": 300, "width": 32, "heads": 1, "layers": 1}
    vision = {"image_size": 32, **TOWERS[request.param]}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file(make_clip(model).state_dict(), path)
    return ClipSpec(model=model, pretrained=str(path))


def images(count: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_distance_is_its_equation(spec: ClipSpec):
    distance = load_feature_distance(spec)
    made, real = images(seed=1), images(seed=2)
    visual = distance.tower.module
    parts = []
    for one, other in zip(
        *(visual.forward_intermediates(x * 2 - 1)["image_intermediates"] for x in (made, real)),
        strict=True,
    ):
        a, b = one.numpy().astype(float), other.numpy().astype(float)
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        parts.append((2 - 2 * cosines).mean())
    assert len(parts) >= 2
    assert float(distance(made, real)) == pytest.approx(np.mean(parts), rel=1e-4)


def test_laws_of_a_distance(spec: ClipSpec):
    distance = load_feature_distance(spec)
    made, real = images(seed=1), images(seed=2)
    assert float(distance(real, real)) == 0.0
    assert 0.0 < float(distance(made, real)) <= 4.0
    torch.testing.assert_close(distance(made, real), distance(real, made))
    near = float(distance(real + 0.01 * (made - real), real))
    assert near < float(distance(made, real))


def test_other_sizes_are_resized(spec: ClipSpec):
    distance = load_feature_distance(spec)
    real = images(side=16)
    twice = torch.nn.functional.interpolate(real, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(distance(images(side=16, seed=1), real), distance(
        torch.nn.functional.interpolate(
            images(side=16, seed=1), (32, 32), mode="bilinear", antialias=True
        ),
        twice,
    ))  # fmt: skip


def test_gradients_reach_what_was_made_and_nothing_else(spec: ClipSpec):
    distance = load_feature_distance(spec)
    made, real = images(seed=1).requires_grad_(), images(seed=2).requires_grad_()
    distance(made, real).backward()
    assert made.grad is not None
    assert float(made.grad.abs().sum()) > 0
    assert real.grad is None
    assert all(p.grad is None for p in distance.tower.module.parameters())


def task(perceptual: FeatureDistance | None) -> ImageTokenizerTask:
    pixels = (images(12, side=16).permute(0, 2, 3, 1) * 255).byte().numpy()
    config = ImageTokenizerTaskConfig(
        batch_size=6,
        warmup_steps=10,
        start_batches=2,
        squared_weight=0.0 if perceptual else 1.0,
        absolute_weight=0.0 if perceptual else 0.1,
        perceptual_weight=1.0 if perceptual else 0.0,
    )
    shape = VQGANConfig(image_size=16, codebook_size=8, code_dim=4, widths=(8, 16))
    return ImageTokenizerTask(pixels, shape, config, perceptual=perceptual)


def test_a_tokenizer_learns_from_features_alone(spec: ClipSpec, tmp_path: Path):
    distance = load_feature_distance(spec)
    fitted = task(distance)
    before = fitted.loss(0, rank=0, world_size=1)[1]["reconstruction"]
    config = FitConfig(steps=30, learning_rate=5e-3, warmup_steps=2, weight_decay=0.0)
    fit(fitted, config, checkpoint_dir=tmp_path)
    assert fitted.loss(0, rank=0, world_size=1)[1]["reconstruction"] < 0.8 * before
    assert set(fitted.model.state_dict()) == set(task(None).model.state_dict())


def test_a_named_model_brings_its_own_normalisation(tmp_path: Path):
    import open_clip

    model = open_clip.create_model("ViT-S-32-alt", load_weights=False)
    save_file(model.state_dict(), tmp_path / "named.safetensors")
    spec = ClipSpec(model="ViT-S-32-alt", pretrained=str(tmp_path / "named.safetensors"))
    tower = load_image_tower(spec)
    assert (tower.size, tower.mean) == (224, tuple(open_clip.OPENAI_DATASET_MEAN))
    maps = tower.intermediates(images(1, side=64))
    assert {m.shape[2:] for m in maps} == {(7, 7)}


def test_features_without_weights_are_refused(spec: ClipSpec):
    with pytest.raises(EncoderError, match="give `pretrained`"):
        load_feature_distance(ClipSpec(model=spec.model))


@pytest.mark.gpu
def test_cuda_gives_the_distance_of_the_cpu(spec: ClipSpec):
    here, there = load_feature_distance(spec), load_feature_distance(spec, device="cuda")
    made, real = images(seed=1), images(seed=2)
    expected = float(here(made, real))
    assert float(there(made.cuda(), real.cuda())) == pytest.approx(expected, rel=0.02)
