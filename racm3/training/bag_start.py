"""A text tower that needs no training: captions as whitened bags of word pieces.

Trained from scratch on a few thousand captions, a text tower forgets what it was not shown: the
name of a country that no training caption holds ends up anywhere. At the start it is a random
projection of the pieces of a caption, and there two captions that share a rare piece *are* close.
So, for small corpora, the tower keeps its start and only the image tower learns to meet it (the
mirror image of LiT, arXiv:2111.07991, which locks the image tower).

Two repairs make the start good: positions are left out (a piece counts the same wherever it stands)
and the projection is whitened on the captions it is fitted on (frequent pieces say little). Both
are folded into open_clip's own weights, so nothing but a plain open_clip model is saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["lock_text_tower", "start_bag_tower", "text_vectors"]

RIDGE = 0.02
"""Added to every variance, as a share of the mean variance: rare directions are not blown up."""
_BATCH = 512


@torch.no_grad()
def start_bag_tower(model: Any, ids: Tensor) -> None:
    """Makes the text tower a whitened bag of pieces.

    Args:
        model: An `open_clip.model.CLIP` at its random start; changed in place.
        ids: int64 [N, context_length], the captions that it is whitened on.
    """
    model.positional_embedding.zero_()
    vectors = text_vectors(model, ids)
    mean = vectors.double().mean(0)
    centred = vectors.double() - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    whitening = axes / torch.sqrt(variances + RIDGE * variances.mean())
    projection = _projection(model)
    shift = torch.linalg.lstsq(projection.double().T, -mean[:, None]).solution[:, 0]
    model.ln_final.bias.add_(shift.float())
    projection.copy_((projection.double() @ whitening).float())


@torch.no_grad()
def text_vectors(model: Any, ids: Tensor) -> Tensor:
    """Vectors [N, d] of captions as the text tower is now; their lengths are the tower's."""
    training = model.training
    vectors = torch.cat([model.eval().encode_text(part) for part in torch.split(ids, _BATCH)])
    model.train(training)
    return vectors


def lock_text_tower(model: nn.Module) -> None:
    """Leaves only the image tower and the logit scale to be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("visual.") or name == "logit_scale")


def _projection(model: Any) -> Tensor:
    """The text projection [width, d], shared with the model."""
    projection: Tensor = model.text_projection
    return projection.data
