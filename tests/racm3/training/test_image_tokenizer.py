from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from racm3.image_tokenizer.vqgan import VQGANConfig
from racm3.training.fit import FitConfig, fit
from racm3.training.image_tokenizer import (
    ImageTokenizerTask,
    ImageTokenizerTaskConfig,
    images_to_tensor,
    reconstruction_metrics,
    tensor_to_images,
)

SHAPE = VQGANConfig(image_size=16, codebook_size=16, code_dim=4, patch=4, widths=(16,))


@pytest.fixture(autouse=True)
def one_thread():
    """Small convolutions on many threads of a busy machine mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def flags() -> np.ndarray:
    """Two-coloured images: left and right, or top and bottom."""
    rng = np.random.default_rng(0)
    palette = np.array([[255, 0, 0], [0, 0, 255], [255, 255, 255], [0, 128, 0]], dtype=np.uint8)
    images = np.empty((60, 16, 16, 3), dtype=np.uint8)
    for image in images:
        first, second = palette[rng.choice(4, 2, replace=False)]
        image[:] = first
        (image[8:] if rng.random() < 0.5 else image[:, 8:])[:] = second
    return images


def task(images: np.ndarray, **changes) -> ImageTokenizerTask:
    values = {"batch_size": 8, "warmup_steps": 20, "revive_every": 5, "total_steps": 150}
    return ImageTokenizerTask(images, SHAPE, ImageTokenizerTaskConfig(**{**values, **changes}))


def config(steps: int, **changes) -> FitConfig:
    values = {"learning_rate": 5e-3, "warmup_steps": 10, "weight_decay": 0.01}
    return FitConfig(steps=steps, **{**values, **changes})


def test_batches_are_functions_of_seed_step_and_rank(flags):
    left, right = task(flags, flip=True), task(flags, flip=True)
    right.batch(7, rank=0, world_size=1)
    assert torch.equal(left.batch(3, rank=0, world_size=1), right.batch(3, rank=0, world_size=1))
    other = task(flags, flip=True, seed=1)
    assert not torch.equal(
        left.batch(3, rank=0, world_size=1), other.batch(3, rank=0, world_size=1)
    )


def test_an_epoch_reads_every_image_once_over_all_ranks(flags):
    numbered = np.zeros((48, 16, 16, 3), dtype=np.uint8)
    numbered += np.arange(48, dtype=np.uint8)[:, None, None, None]
    fitted = task(numbered)
    seen = [
        int(value)
        for step in range(3)
        for rank in range(2)
        for value in (fitted.batch(step, rank=rank, world_size=2)[:, 0, 0, 0] * 255).round()
    ]
    assert sorted(seen) == list(range(48))
    assert seen != list(range(48))


def test_fitting_reconstructs_images_it_has_not_seen(flags):
    fitted = task(flags[:50])
    result = fit(
        fitted,
        config(150, validate_every=75),
        validate=lambda _: reconstruction_metrics(fitted.tokenizer, flags[50:]),
    )
    after = reconstruction_metrics(fitted.tokenizer, flags[50:])
    assert after["psnr"] > 20.0
    assert after["loss"] == result.best_loss
    assert result.flops == 150 * fitted.step_flops(0) > 0


def test_weights_from_the_unquantised_warm_up_are_never_the_best(flags):
    fitted = task(flags[:50], warmup_steps=40, decay=1.0, revive_below=0.0)
    result = fit(
        fitted,
        config(42, validate_every=20),
        validate=lambda model: reconstruction_metrics(model.tokenizer, flags[50:]),
    )
    losses = [row.metrics["loss"] for row in result.log if row.split == "validation"]
    assert losses[0] == float("inf")
    assert result.best_step > 20
    assert bool(fitted.tokenizer.codebook.started)


def test_codebook_starts_after_the_warm_up_and_dead_codes_come_back(flags):
    fitted = task(flags)
    fit(fitted, config(19))
    assert not bool(fitted.tokenizer.codebook.started)
    fitted = task(flags)
    fit(fitted, config(20))
    book = fitted.tokenizer.codebook
    assert bool(book.started)
    book.counts[3] = 0.0
    fitted.loss(24, rank=0, world_size=1)
    fitted.after_step(24)
    assert float(book.counts[3]) == 1.0


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("adversarial_weight", [0.0, 0.5])
def test_interrupted_and_resumed_gives_the_same_bytes(flags, tmp_path: Path, adversarial_weight):
    def run(folder: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        def hook(step: int, _: Path) -> None:
            if step == stop_at:
                raise _Stopped

        fitted = task(flags, adversarial_weight=adversarial_weight, discriminator_width=8,
                      discriminator_levels=2, adversarial_start=10)  # fmt: skip
        fit(fitted, config(32, checkpoint_every=8), checkpoint_dir=folder, after_checkpoint=hook)
        return fitted.model.state_dict()

    whole = run(tmp_path / "whole")
    for stop_at in (8, 24):  # before and after the codebook has started
        folder = tmp_path / str(stop_at)
        with pytest.raises(_Stopped):
            run(folder, stop_at)
        resumed = run(folder)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_each_side_of_the_adversary_gets_its_own_gradient(flags):
    fitted = task(flags, adversarial_weight=1.0, discriminator_width=8, discriminator_levels=2)
    images = fitted.batch(0, rank=0, world_size=1)
    terms = fitted.model(images)
    terms.adversarial.backward(retain_graph=True)
    assert all(p.grad is None for p in fitted.model.critic.parameters())
    assert float(fitted.tokenizer.last_layer.grad.abs().sum()) > 0
    fitted.model.zero_grad(set_to_none=True)
    terms.discriminator.backward()
    assert all(p.grad is None for p in fitted.tokenizer.parameters())
    assert all(p.grad is not None for p in fitted.model.critic.parameters())


def test_perceptual_term_is_added_with_its_weight(flags):
    def distance(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return (made.mean((2, 3)) - real.mean((2, 3))).abs().mean()

    def fitted(weight: float, term) -> ImageTokenizerTask:
        return ImageTokenizerTask(
            flags,
            SHAPE,
            ImageTokenizerTaskConfig(batch_size=8, perceptual_weight=weight),
            perceptual=term,
        )

    plain, with_term = fitted(0.0, None), fitted(2.0, distance)
    images = plain.batch(0, rank=0, world_size=1)
    expected = plain.loss(0, rank=0, world_size=1)[0] + 2.0 * distance(
        plain.tokenizer(images).images, images
    )
    torch.testing.assert_close(with_term.loss(0, rank=0, world_size=1)[0], expected)
    with pytest.raises(ValueError, match="need each other"):
        fitted(1.0, None)


def test_flops_are_those_of_the_convolutions():
    fitted = task(np.zeros((1, 16, 16, 3), dtype=np.uint8))
    places, block = 16, 16 * 16 * 9 + 16 * 16
    encoder = 48 * 16 * 9 + block + 16 * 4
    decoder = 4 * 16 * 9 + 2 * block + 16 * 48 * 9
    assert fitted.step_flops(0) == 3 * 8 * 2 * places * (encoder + decoder + 4 * 16)


def test_pixels_survive_the_way_to_tensors_and_back(flags):
    assert np.array_equal(tensor_to_images(images_to_tensor(flags)), flags)


def test_images_of_another_size_are_refused(flags):
    with pytest.raises(ValueError, match=r"fitted on images \[N >= 1, 16, 16, 3\]"):
        task(flags[:, :8])


@pytest.mark.parametrize(
    "changes", [{"batch_size": 0}, {"decay": 1.5}, {"commitment_weight": -1.0}]
)
def test_impossible_numbers_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        ImageTokenizerTaskConfig(**changes)
