from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from racm3.image_tokenizer import VQGAN, PublicVQ, PublicVQSpec, VQGANConfig
from racm3.metrics.pixels import psnr_values
from racm3.training.image_tokenizer import (
    images_to_tensor,
    reconstruction_metrics,
    tensor_to_images,
)
from racm3.training.reconstruction import reconstruction_quality


def vqgan() -> VQGAN:
    generator = torch.Generator().manual_seed(0)
    model = VQGAN(VQGANConfig(image_size=16, codebook_size=8, widths=(8, 16)), generator=generator)
    images = torch.rand(16, 3, 16, 16, generator=generator)
    model.codebook.start(model.latents(images).detach(), iterations=3, generator=generator)
    return model.eval()


def public() -> PublicVQ:
    torch.manual_seed(0)
    small = {"channels": 32, "multipliers": (1, 1, 1), "blocks": 1, "latent_channels": 4}
    spec = PublicVQSpec(layout="taming", image_size=16, codebook_size=8, code_dim=4, **small)
    model = PublicVQ(spec)
    model.codebook.normal_()
    return model.eval()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("made", [vqgan, public])
def test_quality_is_psnr_of_what_comes_back_and_codes_that_occur(made, images):
    tokenizer, seen = made(), []
    quality = reconstruction_quality(tokenizer, images, batch_size=4, report=seen.append)
    codes = tokenizer.encode(images_to_tensor(images))
    expected = psnr_values(tensor_to_images(tokenizer.decode(codes)), images).mean()
    assert quality["psnr"] == pytest.approx(expected, abs=0.05)  # those are rounded to 8 bits
    assert quality["codes_used"] == len(codes.unique()) / 8
    assert seen == [4, 8, 11]


def test_a_vqgan_measures_the_same_while_it_is_fitted(images):
    tokenizer = vqgan()
    expected = reconstruction_metrics(tokenizer, images)
    found = reconstruction_quality(tokenizer, images)
    assert found["psnr"] == pytest.approx(expected["psnr"], abs=1e-4)
    assert found["codes_used"] == expected["codes_used"]


def test_without_images_nothing_is_known():
    assert math.isnan(reconstruction_quality(vqgan(), np.zeros((0, 16, 16, 3), np.uint8))["psnr"])
