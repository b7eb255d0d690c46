"""The emoji recipes: the whole DAG in seconds, the demo, and the recipe that is studied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.config import RunConfig, deep_merge, validated

__all__ = ["EMOJI"]

_SMOKE_SIZES: dict[str, Any] = {
    "corpus": {
        "concepts": 160,
        "flags": 40,
        "familiar": 24,
        "validation": 24,
        "unseen_share": 0.1,
        "unseen_flags": 8,
        "rows_per_file": 128,
    },
    "encoder_steps": 24,
    "encoder_batch": 64,
    "scorer_steps": 16,
    "tokenizer_steps": 60,
    "tokenizer_widths": (16, 48),
    "generator_steps": 30,
    "width": 64,
    "ffn": 128,
    "layers": 2,
    "heads": 4,
    "vocab_size": 512,
    "max_text_tokens": 16,
    "batch_size": 8,
    "validation_examples": 24,
    "prompts_per_group": 6,
    "images_per_prompt": 1,
    "resamples": 200,
    "few_shot": {"trials": 8, "ks": (1,)},
}

_EMOJI_SIZES: dict[str, Any] = {
    "corpus": {},
    "encoder_steps": 240,
    "encoder_batch": 192,
    "scorer_steps": 240,
    "tokenizer_steps": 900,
    "tokenizer_widths": (32, 112),
    "generator_steps": None,
    "generator_flops": 6e12,
    "expected_steps": 5800,
    "width": 96,
    "ffn": 192,
    "layers": 2,
    "heads": 4,
    "vocab_size": 512,
    "max_text_tokens": 24,
    "batch_size": 8,
    "validation_examples": 96,
    "prompts_per_group": 64,
    "images_per_prompt": 4,
    "resamples": 2000,
}


_SPANS = {
    "none": 0.5,
    "uniform_spans": 0.1,
    "whole_caption": 0.2,
    "whole_image": 0.1,
    "image_span": 0.1,
}
"""More of what the score table asks (images in causal order, whole captions) than the default."""


_DRAWING = {"temperature": 1.0, "top_p": 0.9, "guidance": 2.0, "null_lacks": "both"}
"""How all models draw; for one without contexts the null prompt just lacks the caption."""


_EDITING = _DRAWING | {"guidance": 4.0, "null_lacks": "contexts"}
"""An edit follows the document supplied rather than what stands around the box."""


_STUDY_SIZES: dict[str, Any] = _EMOJI_SIZES | {
    "corpus": {"familiar": 600, "unseen_categories": 6},
    "encoder_steps": 1000,
    "scorer_steps": 1000,
    "tokenizer_steps": 1800,
    "generator_flops": 8e12,
    "expected_steps": 3400,
    "width": 128,
    "ffn": 256,
    "layers": 3,
    "prompts_per_group": 600,
    "few_shot": {"trials": 200},
}

_STUDY_SPANS = {
    "none": 0.35,
    "uniform_spans": 0.1,
    "whole_caption": 0.35,
    "whole_image": 0.1,
    "image_span": 0.1,
}
"""Captions are asked as often as images, so they are learned as often."""

_STUDY: dict[str, Any] = {
    "encoder": {
        "training": {"batch_size": 384, "image_contrast": 1.0, "augment": {"color": 0.4}},
    },
    "scorer": {
        "training": {
            "shape": {"image_tower": "resnet", "image_width": 24},
        }
    },
    "embed": {"drop_patches": 0.2, "patch": 8},
    "memories": {"random": {"roles": ["train"], "ranking": "random"}},
    "generators": {
        "ra": {"stream": {"spans": _STUDY_SPANS, "query_follows_task": True}},
        "vanilla": {"stream": {"spans": _STUDY_SPANS}},
    },
    "generate": {"candidates": {"caption": {"count": 24, "rank": "clip"}}},
}
"""What the study does differently, besides sizes; reasons and figures: `docs/experiments.md`."""


def smoke() -> RunConfig:
    """The whole DAG of RA-CM3 (arXiv:2211.12561) on about 200 emoji concepts, models untrained.

    Cost: under two minutes on two cores. Command: `racm3 run smoke`. Its scores mean nothing; it
    is for tests, and for seeing every part move.
    """
    return _emoji_like("smoke", _SMOKE_SIZES)


def emoji() -> RunConfig:
    """RA-CM3 (arXiv:2211.12561) in small: emoji in two drawings, against vanilla CM3.

    Cost: under ten minutes on two cores. Command: `racm3 run emoji`. Both generators are
    trained on the same examples for the same FLOPs, contexts counted. What was measured:
    `docs/experiments.md`.
    """
    return _emoji_like("emoji", _EMOJI_SIZES)


def emoji_study() -> RunConfig:
    """RA-CM3 (arXiv:2211.12561) against vanilla CM3 and a DALL-E-like causal model, at length.

    Cost: 36 minutes on two busy cores, with one variant at a quarter of the compute. Command:
    `racm3 run emoji-study`; with its variants, on three splits: `racm3 study emoji-study`. The
    corpus of `emoji` with more documents held out, a retriever that was trained longer, a scorer
    that tells a blurred picture from a sharp one (that of `emoji` does not), larger generators.
    Every generator has the same training compute, drawing settings and number of candidates.
    """
    return validated(
        deep_merge(_emoji_like("emoji-study", _STUDY_SIZES).model_dump(), _study_changes()),
        name="emoji-study",
    )


def _study_changes() -> dict[str, Any]:
    """The switches of the study, and its third generator: vanilla CM3 that masks nothing."""
    causal = _generator(_STUDY_SIZES, max_k=0)
    causal["stream"] |= {"objective": "causal", "caption_dropout": 0.1}
    return deep_merge(_STUDY, {"generators": {"causal": causal}})


EMOJI: dict[str, Callable[[], RunConfig]] = {
    "smoke": smoke,
    "emoji": emoji,
    "emoji-study": emoji_study,
}


def _emoji_like(namespace: str, sizes: Mapping[str, Any]) -> RunConfig:
    """Everything that the emoji recipes share; `sizes` says how large and how long."""
    values = {
        "namespace": namespace,
        "corpus": dict(sizes["corpus"]),
        "min_success": 0.9,
        "ingest": {"min_size": 32, "rows_per_shard": 512},
        "normalize": {"image_size": 64},
        "curate": {"duplicates": "document"},
        "text_tokenizer": {"vocab_size": sizes["vocab_size"]},
        "encoder": _retriever(sizes),
        "scorer": _scorer(sizes),
        "image_tokenizer": _image_tokenizer(sizes),
        "embed": {"draws": 4, "drop": 0.2},
        "memories": {
            "restricted": {"roles": ["train"]},
            "extended": {"roles": ["train", "memory"], "evaluates": ["unseen"]},
        },
        "retrieve": {"selection": {"max_contexts": 2, "near_copy": None, "floor": 0.5}},
        "max_text_tokens": sizes["max_text_tokens"],
        "generators": {
            "ra": _generator(sizes, max_k=2),
            "vanilla": _generator(sizes, max_k=0),
        },
        "generate": {
            "model": "",
            "prompts_per_group": sizes["prompts_per_group"],
            "images_per_prompt": sizes["images_per_prompt"],
            "images": _DRAWING,
            "edits": _EDITING,
        },
        "score": {
            "resamples": sizes["resamples"],
            "few_shot": sizes.get("few_shot", {}),
            "distance_pairs": "apart",
        },
        "report": {"title": f"RA-CM3: {namespace}"},
    }
    return validated(values, name=namespace)


def _retriever(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What retrieves: whitened bags of word pieces, and an image tower that learns to meet them."""
    shape = {"image_tower": "resnet", "image_width": 16, "image_layers": 1, "embed_dim": 128}
    own = {"shape": shape | {"text_width": 128}, "text_tower": "bag", "seed": 1}
    return {"training": own | _clip_schedule(sizes, sizes["encoder_steps"])}


def _scorer(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What scores: another shape and seed, both towers learned."""
    shape = {"image_tower": "vit", "image_width": 64, "image_layers": 1, "embed_dim": 64}
    own = {"shape": shape | {"text_width": 64}, "token_lr_scale": 0.1, "seed": 2}
    return {"training": own | _clip_schedule(sizes, sizes["scorer_steps"])}


def _clip_schedule(sizes: Mapping[str, Any], steps: int) -> dict[str, Any]:
    return {
        "batch_size": sizes["encoder_batch"],
        "fit": {
            "steps": steps,
            "learning_rate": 2e-3,
            "warmup_steps": min(20, steps // 4),
            "validate_every": max(1, steps // 4),
            "checkpoint_every": 25,
        },
    }


def _image_tokenizer(sizes: Mapping[str, Any]) -> dict[str, Any]:
    steps = sizes["tokenizer_steps"]
    return {
        "model": {"codebook_size": 256, "code_dim": 16, "widths": list(sizes["tokenizer_widths"])},
        "task": {
            "batch_size": 16,
            "warmup_steps": steps // 9,
            "revive_every": min(20, max(5, steps // 10)),
            "start_batches": 8,
        },
        "fit": {
            "steps": steps,
            "learning_rate": 4e-3,
            "weight_decay": 0.0,
            "warmup_steps": min(30, steps // 4),
            "validate_every": max(1, steps // 3),
            "checkpoint_every": 50,
        },
        "validation_images": 96,
    }


def _generator(sizes: Mapping[str, Any], *, max_k: int) -> dict[str, Any]:
    """One generator. Both read as many documents a step, since half of RA-CM3's are contexts."""
    steps, budget = sizes["generator_steps"], sizes.get("generator_flops")
    expected = steps or sizes["expected_steps"]
    return {
        "layers": sizes["layers"],
        "width": sizes["width"],
        "ffn": sizes["ffn"],
        "heads": sizes["heads"],
        "positions": "document",
        "tie_embeddings": False,
        "induction_start": True,
        "max_length": 512,
        "init_std": round(sizes["width"] ** -0.5, 4),
        "stream": {
            "batch_size": sizes["batch_size"] // (2 if max_k else 1),
            "max_k": max_k,
            "alpha": 0.3,
            "context_order": "best_first",
            "query_probability_text": 0.75,
            "spans": _SPANS,
            "group_weights": {"flags": 3.0},
            "image_noise": 0.15,
            "max_text_tokens": sizes["max_text_tokens"],
            "max_length": 512,
        },
        "fit": {
            "steps": steps,
            "flops_budget": budget,
            "learning_rate": 5e-3,
            "warmup_steps": min(60, expected // 4),
            "validate_every": max(1, expected // 8),
            "checkpoint_every": max(1, expected // 12),
        },
        "total_steps": None if steps else expected,
        "validation_k": max_k,
        "validation_ks": [0, 1, 2] if max_k else [0],
        "validation_examples": sizes["validation_examples"],
    }
