"""The LAION recipes: RA-CM3's own setting (arXiv:2211.12561) in four sizes, for a GPU cluster.

256 x 256 pixels, 1,024 image tokens of 8,192 codes, sequences of 4,096, 65,536 ids in all (56,320
text, 8,192 image, 1,020 sentinels and 4 other specials, as many as the paper's code base sets
aside), CLIP ViT-L/14, up to two contexts, alpha 0.1, Adam (0.9, 0.98), 1,500 warm-up updates.

Whoever runs one gives the files: `sources` name no file. The first file of `laion` is what the
tokenizers and the scorer are fitted on; give one of some 100,000 rows.

Not in the paper, or not known of it: the budget (one pass over 150 million pairs at one context on
average), the learning rates of the smaller sizes (OPT's), weight decay, the split over workers.
"""

from __future__ import annotations

from typing import Any

from pipelines.config import RunConfig, validated

__all__ = ["LAION"]

_SPECIAL, _SENTINELS, _CODES, _IDS = 4, 1020, 8192, 65_536
_TEXT = _IDS - _SPECIAL - _SENTINELS - _CODES

_LONGEST = 4096
_CAPTION = 128

_SPANS = {
    "none": 0.3,
    "uniform_spans": 0.2,
    "whole_caption": 0.25,
    "whole_image": 0.1,
    "image_span": 0.15,
}


def laion_125m() -> RunConfig:
    """RA-CM3 (arXiv:2211.12561) with a generator of 125M parameters, on LAION metadata of yours.

    Cost: 3.5e20 FLOPs for each of the two generators; 10 hours on 64 GPUs that do 1.5e14 a second.
    Command: `racm3 run laion-125m` with your `sources`.
    """
    return _laion("laion-125m", "125m", flops=3.5e20, learning_rate=6e-4, workers=64)


def laion_350m() -> RunConfig:
    """RA-CM3 (arXiv:2211.12561) with a generator of 350M parameters, on LAION metadata of yours.

    Cost: 9.5e20 FLOPs for each of the two generators; 21 hours on 64 GPUs that do 2e14 a second.
    Command: `racm3 run laion-350m` with your `sources`.
    """
    return _laion("laion-350m", "350m", flops=9.5e20, learning_rate=3e-4, workers=64)


def laion_1_3b() -> RunConfig:
    """RA-CM3 (arXiv:2211.12561) with a generator of 1.3B parameters, on LAION metadata of yours.

    Cost: 3.1e21 FLOPs for each of the two generators; 34 hours on 128 GPUs that do 2e14 a second.
    Command: `racm3 run laion-1.3b` with your `sources`.
    """
    return _laion("laion-1.3b", "1.3b", flops=3.1e21, learning_rate=2e-4, workers=128)


def laion_2_7b() -> RunConfig:
    """RA-CM3 (arXiv:2211.12561) in its own size, 2.7B parameters, on LAION metadata of yours.

    Cost: 6e21 FLOPs for each of the two generators; 65 hours on 128 GPUs that do 2e14 a second.
    Command: `racm3 run laion-2.7b` with your `sources`.
    """
    return _laion(
        "laion-2.7b", "2.7b", flops=6e21, learning_rate=1e-4, workers=128, sharding="fsdp2"
    )


LAION = {
    "laion-125m": laion_125m,
    "laion-350m": laion_350m,
    "laion-1.3b": laion_1_3b,
    "laion-2.7b": laion_2_7b,
}


def _laion(
    namespace: str,
    size: str,
    *,
    flops: float,
    learning_rate: float,
    workers: int,
    sharding: str = "none",
) -> RunConfig:
    """Everything that the LAION recipes share."""
    schedule = {
        "flops_budget": flops,
        "learning_rate": learning_rate,
        "warmup_steps": 1500,
        "validate_every": 2000,
        "checkpoint_every": 1000,
        "log_every": 50,
    }
    own = {"size": size, "fit": schedule, "workers": workers, "sharding": sharding}
    values = {
        "namespace": namespace,
        "sources": [
            {"name": "laion", "paths": [], "role": "train"},
            {"name": "coco", "paths": [], "role": "evaluation", "set": "coco"},
        ],
        "fit_sources": ["laion"],
        "fit_files": 1,
        "max_poisoned": 10,
        "ingest": {
            "min_size": 256,
            "max_watermark": 0.5,
            "max_unsafe": 0.5,
            "split": {"laion": {"validation": 0.001}},
        },
        "normalize": {"image_size": 256},
        "text_tokenizer": {"vocab_size": _TEXT},
        "scorer": _scorer(),
        "image_tokenizer": _image_tokenizer(),
        "embed": {"pretrained": {"model": "ViT-L-14", "pretrained": "openai"}, "drop": 0.2},
        "memory": {
            "index_key": None,
            "max_index_memory": "32G",
            "build_memory": "128G",
            "max_query_ms": 10.0,
        },
        "memories": {"restricted": {"roles": ["train"]}},
        "retrieve": {
            "selection": {"max_contexts": 2, "near_copy": 0.9, "compare": "document"},
            "first_candidates": 64,
            "rescore": True,
        },
        "max_text_tokens": _CAPTION,
        "generators": {
            "ra": _generator(max_k=2, batch_size=1024) | own,
            "vanilla": _generator(max_k=0, batch_size=2048) | own,
        },
        "generate": {"model": "", "prompts_per_group": 1000},
        "report": {"title": f"RA-CM3: {namespace}"},
    }
    return validated(values, name=namespace)


def _generator(*, max_k: int, batch_size: int) -> dict[str, Any]:
    """One generator. Both read as many documents a step, since half of RA-CM3's are contexts."""
    return {
        "positions": "sequence",
        "max_length": _LONGEST,
        "init": {"truncate": 4.0, "positions_std": 0.02},
        "num_sentinels": _SENTINELS,
        "stream": {
            "batch_size": batch_size,
            "max_k": max_k,
            "k_per_batch": False,
            "alpha": 0.1,
            "context_order": "shuffled",
            "query_probability_text": 0.5,
            "spans": _SPANS,
            "max_text_tokens": _CAPTION,
            "max_length": _LONGEST,
            "pack_length": 65_536,
        },
        "validation_k": max_k,
        "validation_ks": [0, 1, 2] if max_k else [0],
        "validation_examples": 512,
        "bf16": True,
        "checkpoint_activations": True,
        "loss_bucket": 1024,
    }


def _image_tokenizer() -> dict[str, Any]:
    """`VQGAN_F8_8192`: 256 x 256 pixels to 32 x 32 codes of 8,192."""
    return {
        "model": {
            "image_size": 256,
            "codebook_size": _CODES,
            "code_dim": 256,
            "patch": 1,
            "widths": [128, 128, 256, 512],
            "encoder_blocks": 2,
            "decoder_blocks": 3,
            "norm_groups": 32,
        },
        "task": {
            "batch_size": 32,
            "flip": True,
            "warmup_steps": 1000,
            "start_batches": 64,
            "adversarial_weight": 0.8,
            "adversarial_start": 50_000,
        },
        "fit": {
            "steps": 250_000,
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "warmup_steps": 1000,
            "validate_every": 10_000,
            "checkpoint_every": 2000,
            "log_every": 100,
        },
        "validation_images": 1024,
    }


def _scorer() -> dict[str, Any]:
    """What scores: a CLIP of another shape than the retriever's, fitted on the same pairs."""
    shape = {"image_tower": "vit", "image_size": 128, "patch_size": 16, "image_width": 384}
    shape |= {"image_layers": 6, "text_width": 384, "text_layers": 4, "embed_dim": 256}
    return {
        "training": {
            "shape": shape | {"vocab_size": 16_384, "context_length": 64},
            "batch_size": 1024,
            "seed": 2,
            "fit": {
                "steps": 20_000,
                "learning_rate": 5e-4,
                "warmup_steps": 1000,
                "validate_every": 2000,
                "checkpoint_every": 1000,
            },
        }
    }
