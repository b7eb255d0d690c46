"""The codebook of a VQ tokenizer: nearest neighbours, and learning by moving averages.

The vectors are not trained by gradients: each is the moving average of the latents assigned to it
(van den Oord et al., arXiv:1711.00937, appendix A.1). They start from k-means over real latents,
and a code that is no longer used is moved onto a random latent, so that a codebook stays in use.

N latents, n codes, d dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Codebook(nn.Module):
    """n vectors of d dimensions and the running sums they are the quotients of.

    Everything is a persistent buffer: a state dict holds all that learning needs to go on exactly.
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def nearest(self, latents: Tensor) -> Tensor:
        """Returns the code of each latent's nearest vector (Euclidean; ties: lowest code).

        Args:
            latents: [N, d].

        Returns:
            int64 [N].
        """
        return nearest(latents, self.vectors)

    def lookup(self, codes: Tensor) -> Tensor:
        """Returns the vectors of codes: any shape of int64 -> the same shape + [d]."""
        return nn.functional.embedding(codes, self.vectors)

    @torch.no_grad()
    def start(self, latents: Tensor, *, iterations: int, generator: torch.Generator) -> None:
        """Places the vectors by k-means and starts the running sums there.

        Args:
            latents: [N, d], N >= n.
            iterations: Of k-means.
            generator: On the CPU; chooses the first centres and where empty clusters go.

        Raises:
            ValueError: There are fewer latents than codes.
        """
        centres, counts = k_means(
            latents, self.vectors.shape[0], iterations=iterations, generator=generator
        )
        weight = counts.clamp(min=1.0) * (self.vectors.shape[0] / latents.shape[0])
        self.vectors.copy_(centres)
        self.counts.copy_(weight)
        self.sums.copy_(centres * weight[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def update(self, counts: Tensor, sums: Tensor, *, decay: float) -> None:
        """Moves the averages by one step.

        Counts are kept as multiples of what an evenly used code would get, so that
        `revive`'s threshold means the same at every batch size.

        Args:
            counts: [n], latents of the batch (of all workers) assigned to each code.
            sums: [n, d], their sums.
            decay: Of the moving average, in (0, 1).
        """
        scale = self.counts.shape[0] / counts.sum().clamp(min=1.0)
        self.counts.lerp_(counts * scale, 1.0 - decay)
        self.sums.lerp_(sums * scale, 1.0 - decay)
        used = self.counts > 1e-6
        self.vectors[used] = self.sums[used] / self.counts[used, None]

    @torch.no_grad()
    def revive(self, latents: Tensor, *, threshold: float, generator: torch.Generator) -> int:
        """Moves codes used less than `threshold` times the even share onto random latents.

        Args:
            latents: [N, d], of the last batch.
            threshold: Share of even use below which a code counts as dead, in [0, 1).
            generator: On the CPU; chooses the latents.

        Returns:
            Number of codes moved.
        """
        dead = (self.counts < threshold).nonzero().squeeze(1)
        if dead.numel() == 0:
            return 0
        chosen = torch.randint(latents.shape[0], (dead.numel(),), generator=generator)
        vectors = latents[chosen.to(latents.device)].to(self.vectors.dtype)
        self.vectors[dead] = vectors
        self.counts[dead] = 1.0
        self.sums[dead] = vectors
        return int(dead.numel())


def assignment_sums(latents: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Counts and sums the latents of each code.

    Args:
        latents: [N, d].
        codes: int64 [N], each in 0..size-1.
        size: Number of codes n.

    Returns:
        Counts [n] and sums [n, d], of the latents' dtype.
    """
    counts = torch.bincount(codes, minlength=size).to(latents.dtype)
    sums = latents.new_zeros(size, latents.shape[1]).index_add_(0, codes, latents)
    return counts, sums


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Returns the index of the nearest centre: points [N, d], centres [n, d] -> int64 [N]."""
    half_squares = centres.square().sum(1) / 2
    return torch.addmm(half_squares, points, centres.T, alpha=-1.0).argmin(1)


def k_means(
    points: Tensor, size: int, *, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random points; an empty cluster restarts on a random point.

    Args:
        points: [N, d], N >= size.
        size: Number of centres n.
        iterations: Of Lloyd's algorithm.
        generator: On the CPU.

    Returns:
        Centres [n, d] and the number of points nearest to each in the last iteration, float [n].

    Raises:
        ValueError: There are fewer points than centres.
    """
    if points.shape[0] < size:
        raise ValueError(f"k-means of {size} centres needs as many points, not {points.shape[0]}.")
    first = torch.randperm(points.shape[0], generator=generator)[:size]
    centres = points[first.to(points.device)].clone()
    counts = points.new_zeros(size)
    for _ in range(iterations):
        counts, sums = assignment_sums(points, nearest(points, centres), size)
        fresh = torch.randint(points.shape[0], (size,), generator=generator).to(points.device)
        mean = sums / counts.clamp(min=1.0)[:, None]
        centres = torch.where(counts[:, None] > 0, mean, points[fresh])
    return centres, counts
