from __future__ import annotations

import pytest
import torch

from racm3.image_tokenizer.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)


def test_hinge_losses_are_their_equations():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert float(hinge_discriminator_loss(real, fake)) == 0.5 * (0.25 + 1.0)
    assert float(hinge_generator_loss(fake)) == 1.0


def test_verdicts_are_a_map_and_learn_to_tell():
    critic = PatchDiscriminator(width=8, levels=2, generator=torch.Generator().manual_seed(0))
    real, fake = torch.ones(4, 3, 16, 16), torch.zeros(4, 3, 16, 16)
    assert critic(real).shape == (4, 1, 4, 4)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        hinge_discriminator_loss(critic(real), critic(fake)).backward()
        optimizer.step()
    with torch.no_grad():
        assert float(critic(real).mean()) > float(critic(fake).mean()) + 1.0


def test_adaptive_weight_balances_gradient_norms():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = (weight**2).sum() / 2, 0.01 * weight.sum()
    expected = 5.0 / (0.01 * 2**0.5 + 1e-4)
    assert float(adaptive_weight(reconstruction, adversarial, weight)) == pytest.approx(expected)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        PatchDiscriminator(width=12, levels=2, generator=torch.Generator())
