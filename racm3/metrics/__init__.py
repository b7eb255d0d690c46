"""Metrics: functions that return a `Score`. perplexity.py measures a generator by itself."""

from __future__ import annotations

from racm3.metrics.bootstrap import PairedComparison, paired_bootstrap
from racm3.metrics.cider import cider
from racm3.metrics.clip_score import clip_score
from racm3.metrics.copy_rate import context_agreement, copy_rate
from racm3.metrics.copy_rows import copy_top
from racm3.metrics.fid import fid
from racm3.metrics.kid import cmmd, kid
from racm3.metrics.pixels import psnr
from racm3.metrics.recall import recall_at_k
from racm3.metrics.score import Score, mean_score, share_score
from racm3.metrics.tokens import token_accuracy

__all__ = [
    "METRICS",
    "PairedComparison",
    "Score",
    "cider",
    "clip_score",
    "cmmd",
    "context_agreement",
    "copy_rate",
    "copy_top",
    "fid",
    "kid",
    "mean_score",
    "paired_bootstrap",
    "psnr",
    "recall_at_k",
    "share_score",
    "token_accuracy",
]

METRICS = {
    "cider": cider,
    "clip_score": clip_score,
    "cmmd": cmmd,
    "context_agreement": context_agreement,
    "copy_rate": copy_rate,
    "fid": fid,
    "kid": kid,
    "psnr": psnr,
    "recall_at_k": recall_at_k,
    "token_accuracy": token_accuracy,
}
"""Name -> function returning a `Score`."""
