from __future__ import annotations

import numpy as np
import pytest
import torch

from racm3.encoder.augment import AugmentConfig, augment_images, drop_words

OFF = AugmentConfig(shift=0, scale=0, flip=0, color=0, drop_words=0)


def images():
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_zero_strength_is_the_identity_and_flip_is_a_mirror():
    generator = torch.Generator().manual_seed(1)
    torch.testing.assert_close(augment_images(images(), OFF, generator), images())
    almost = AugmentConfig(shift=0, scale=0, flip=0.999999, color=0, drop_words=0)
    torch.testing.assert_close(augment_images(images(), almost, generator), images().flip(-1))


def test_noise_is_a_function_of_the_generator_and_brings_in_white():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return augment_images(images(), AugmentConfig(), generator)

    assert torch.equal(draw(2), draw(2))
    assert not torch.equal(draw(2), draw(3))
    shifted = AugmentConfig(shift=0.9, scale=0, flip=0, color=0, drop_words=0)
    white = augment_images(torch.ones(2, 3, 8, 8), shifted, torch.Generator().manual_seed(0))
    torch.testing.assert_close(white, torch.ones(2, 3, 8, 8))


def test_words():
    assert drop_words("a  b", 0, np.random.default_rng(0)) == "a  b"
    assert drop_words("a b", 0.999999, np.random.default_rng(0)) in {"a", "b"}
    with pytest.raises(ValueError, match=r"augment\.flip"):
        AugmentConfig(flip=1.0)
