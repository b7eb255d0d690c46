from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from racm3.image_tokenizer.base import ImageTokenizer
from racm3.image_tokenizer.vqgan import (
    VQGAN,
    VQGAN_F8_8192,
    VQGAN_TINY,
    VQGANConfig,
    vqgan_of,
)

CONFIGS = {
    "tiny": VQGANConfig(codebook_size=32, widths=(8, 16)),
    "normed": VQGANConfig(
        image_size=32, codebook_size=16, patch=1, widths=(8, 8, 16), norm_groups=4
    ),
    "one level": VQGANConfig(image_size=24, codebook_size=8, patch=8, widths=(16,)),
}


def made(config: VQGANConfig, seed: int = 0) -> VQGAN:
    generator = torch.Generator().manual_seed(seed)
    model = VQGAN(config, generator=generator).eval()
    images = drawings(config, count=16)
    model.codebook.start(model.latents(images).detach(), iterations=3, generator=generator)
    return model


def drawings(config: VQGANConfig, count: int = 5) -> torch.Tensor:
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.random((count, 3, 6, 6), dtype=np.float32))
    return torch.nn.functional.interpolate(coarse, size=config.image_size, mode="bilinear")


@pytest.fixture(params=CONFIGS)
def tokenizer(request: pytest.FixtureRequest) -> VQGAN:
    return made(CONFIGS[request.param])


def test_laws_of_image_tokenizers(tokenizer: VQGAN):
    assert isinstance(tokenizer, ImageTokenizer)
    images = drawings(tokenizer.config)
    codes = tokenizer.encode(images)
    assert codes.dtype == torch.int64
    assert codes.shape == (5, tokenizer.grid[0] * tokenizer.grid[1])
    assert 0 <= int(codes.min()) <= int(codes.max()) < tokenizer.codebook_size
    assert torch.equal(codes, tokenizer.encode(images))
    assert tokenizer.code_vectors.shape == (tokenizer.codebook_size, tokenizer.config.code_dim)
    assert torch.equal(codes, torch.cat([tokenizer.encode(image[None]) for image in images]))
    back = tokenizer.decode(codes)
    assert back.shape == images.shape
    assert 0.0 <= float(back.min()) <= float(back.max()) <= 1.0
    torch.testing.assert_close(back[2:3], tokenizer.decode(codes[2:3]), rtol=1e-4, atol=1e-5)


def test_codes_are_row_major():
    tokenizer = made(CONFIGS["one level"])
    images = drawings(tokenizer.config, count=1).repeat(2, 1, 1, 1)
    images[1, :, 0:8, 16:24] = 1.0 - images[1, :, 0:8, 16:24]
    latents = tokenizer.latents(images).view(2, 3, 3, -1)
    changed = (latents[0] - latents[1]).abs().sum(-1)
    assert int(changed.flatten().argmax()) == 2  # first row, last column


def test_reconstruction_passes_gradients_straight_through():
    tokenizer = made(CONFIGS["tiny"]).train()
    images = drawings(tokenizer.config)
    out = tokenizer(images)
    out.images.square().mean().backward()
    first = tokenizer.encoder[1].weight.grad
    assert first is not None
    assert float(first.abs().sum()) > 0
    torch.testing.assert_close(
        out.images.clamp(0, 1), tokenizer.decode(out.codes.view(5, -1)), rtol=1e-4, atol=1e-5
    )


def test_weights_are_a_function_of_the_generator():
    config = CONFIGS["tiny"]
    first, again, other = made(config, 3), made(config, 3), made(config, 4)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(first.encoder[1].weight, other.encoder[1].weight)


def test_weights_of_another_shape_are_refused():
    state = made(CONFIGS["tiny"]).state_dict()
    with pytest.raises(ValueError, match="do not fit"):
        vqgan_of(replace(CONFIGS["tiny"], widths=(8, 24)), state)


def test_wrong_shapes_and_codes_are_named(tokenizer: VQGAN):
    side = tokenizer.image_size
    with pytest.raises(ValueError, match="encode"):
        tokenizer.encode(torch.zeros(1, 3, side + 8, side))
    length = tokenizer.grid[0] * tokenizer.grid[1]
    with pytest.raises(ValueError, match=r"takes codes \[B"):
        tokenizer.decode(torch.zeros(1, length + 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="some are not"):
        tokenizer.decode(torch.full((1, length), tokenizer.codebook_size))


def test_named_sizes():
    assert (VQGAN_TINY.factor, VQGAN_TINY.grid, VQGAN_TINY.codebook_size) == (8, (8, 8), 256)
    assert VQGAN_F8_8192.factor == 8
    assert VQGAN_F8_8192.grid == (32, 32)
    with torch.device("meta"):
        parts = sum(p.numel() for p in VQGAN(VQGAN_TINY, generator=torch.Generator()).parameters())
    assert 300_000 < parts < 800_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 60}, "multiple of the factor"),
        ({"widths": ()}, "widths"),
        ({"codebook_size": 0}, "codebook_size"),
        ({"norm_groups": 7}, "norm_groups"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(VQGAN_TINY, **changes)


@pytest.mark.gpu
def test_cuda_gives_the_codes_of_the_cpu(tokenizer: VQGAN):
    images = drawings(tokenizer.config)
    codes, back = tokenizer.encode(images), tokenizer.decode(tokenizer.encode(images))
    there = tokenizer.cuda()
    same = (there.encode(images.cuda()).cpu() == codes).float().mean()
    assert float(same) > 0.98  # a latent between two codes may fall to either
    # TF32 is what cuDNN multiplies with
    torch.testing.assert_close(there.decode(codes.cuda()).cpu(), back, rtol=1e-2, atol=1e-2)
