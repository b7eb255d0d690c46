from __future__ import annotations

import pytest
import torch

from racm3.image_tokenizer.codebook import Codebook, assignment_sums, k_means, nearest


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nearest_is_the_smallest_distance():
    points, centres = torch.randn(50, 3, generator=generator()), torch.randn(7, 3)
    assert torch.equal(nearest(points, centres), torch.cdist(points, centres).argmin(1))


def test_k_means_finds_separate_clusters():
    true = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = true.repeat(25, 1) + 0.1 * torch.randn(100, 2, generator=generator())
    best = min(
        (k_means(points, 4, iterations=20, generator=generator(s))[0] for s in range(5)),
        key=lambda centres: float(torch.cdist(points, centres).min(1).values.sum()),
    )
    assert float(torch.cdist(true, best).min(1).values.max()) < 0.2


def test_k_means_refuses_too_few_points():
    with pytest.raises(ValueError, match="3 centres needs as many points, not 2"):
        k_means(torch.zeros(2, 1), 3, iterations=1, generator=generator())


def test_sums_count_every_latent_once():
    latents = torch.tensor([[1.0], [2.0], [4.0]])
    counts, sums = assignment_sums(latents, torch.tensor([0, 2, 0]), 3)
    assert counts.tolist() == [2.0, 0.0, 1.0]
    assert sums.tolist() == [[5.0], [0.0], [2.0]]


def test_update_is_the_moving_average():
    book = Codebook(2, 1)
    book.counts.copy_(torch.tensor([1.0, 1.0]))
    book.sums.copy_(torch.tensor([[1.0], [3.0]]))
    book.update(torch.tensor([3.0, 1.0]), torch.tensor([[6.0], [5.0]]), decay=0.5)
    # counts are scaled by codes / latents = 2 / 4: [1.5, .5], sums [3, 2.5]
    assert book.counts.tolist() == [1.25, 0.75]
    torch.testing.assert_close(book.vectors, torch.tensor([[2.0 / 1.25], [2.75 / 0.75]]))


def test_started_codebook_has_vectors_at_its_sums():
    book = Codebook(4, 2)
    book.start(torch.randn(64, 2, generator=generator()), iterations=5, generator=generator())
    assert bool(book.started)
    torch.testing.assert_close(book.vectors, book.sums / book.counts[:, None])


def test_revive_moves_dead_codes_onto_latents_and_no_others():
    book = Codebook(3, 2)
    book.vectors.copy_(torch.full((3, 2), 9.0))
    book.counts.copy_(torch.tensor([1.0, 0.001, 0.5]))
    latents = torch.randn(8, 2, generator=generator())
    assert book.revive(latents, threshold=0.01, generator=generator()) == 1
    assert book.vectors[[0, 2]].tolist() == [[9.0, 9.0]] * 2
    assert any(torch.equal(book.vectors[1], row) for row in latents)
    assert book.revive(latents, threshold=0.01, generator=generator()) == 0
