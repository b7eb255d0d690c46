"""Partners by caption, and the two contrasts that know them."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from racm3.training.alike import (
    SHARPNESS,
    alike,
    image_contrast,
    pick_partners,
    unmistakable_clip_loss,
)


def units(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=random), dim=-1)


def test_alike_is_the_cosine_whatever_the_chunks(monkeypatch):
    vectors = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)) * 3
    cosine = functional.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    expected = [[j for j in range(50) if j != i and cosine[i, j] >= 0.6] for i in range(50)]
    assert [found.tolist() for found in alike(vectors, 0.6)] == expected
    monkeypatch.setattr("racm3.training.alike._CHUNK", 7)
    assert [found.tolist() for found in alike(vectors, 0.6)] == expected


def test_a_partner_is_one_that_is_alike_or_the_document_itself():
    partners = [np.array([1, 2]), np.array([0]), np.array([], dtype=np.int64)]
    chosen = np.array([2, 0, 1] * 40)
    found = pick_partners(chosen, partners, np.random.default_rng(0))
    assert set(found[chosen == 0].tolist()) == {1, 2}
    assert set(found[chosen == 1].tolist()) == {0}
    assert set(found[chosen == 2].tolist()) == {2}


def test_the_image_contrast_is_its_definition():
    """-log softmax of the partner among all others, those of the same caption left out."""
    image, caption = units(6, 5), torch.tensor([0, 1, 2, 0, 3, 4])
    expected = []
    for i in range(6):
        partner = (i + 3) % 6
        others = [j for j in range(6) if j == partner or caption[j] != caption[i]]
        logits = torch.stack([SHARPNESS * image[i] @ image[j] for j in others])
        expected.append(-torch.log_softmax(logits, 0)[others.index(partner)])
    assert image_contrast(image, caption) == pytest.approx(float(torch.stack(expected).mean()))


def test_the_image_contrast_is_least_where_partners_meet():
    half, caption = units(4, 16), torch.arange(8) % 4
    apart = image_contrast(torch.cat([half, units(4, 16, seed=5)]), caption)
    assert image_contrast(torch.cat([half, half]), caption) < apart


def test_without_equal_captions_it_is_clips_loss():
    from open_clip import ClipLoss

    image, text, scale = units(6, 5), units(6, 5, seed=2), torch.tensor(7.0)
    ours = unmistakable_clip_loss(image, text, scale, torch.arange(6))
    assert ours == pytest.approx(float(ClipLoss()(image, text, scale)), rel=1e-6)


def test_an_equal_caption_of_another_is_no_wrong_answer():
    image, text = units(4, 5), units(4, 5, seed=2)
    text[1] = text[0]
    caption = torch.tensor([0, 0, 1, 2])
    kept = [0, 2, 3]
    log = torch.log_softmax(9.0 * (image[0] @ text[kept].T), 0)[0]
    other = torch.log_softmax(9.0 * (image[kept] @ text[0]), 0)[0]
    found = unmistakable_clip_loss(image, text, torch.tensor(9.0), caption)
    only = [1, 2, 3]
    rest = [
        torch.log_softmax(9.0 * image[1] @ text[only].T, 0)[0],
        torch.log_softmax(9.0 * image[only] @ text[1], 0)[0],
    ]
    rest += [torch.log_softmax(9.0 * image[i] @ text.T, 0)[i] for i in (2, 3)]
    rest += [torch.log_softmax(9.0 * image @ text[i], 0)[i] for i in (2, 3)]
    assert found == pytest.approx(-float(torch.stack([log, other, *rest]).sum()) / 8, rel=1e-5)
