"""Training steps of the LAION generators with their real shapes, on documents made at random.

    PYTHONPATH=. python benchmarks/laion_step.py --size 350m --device cuda --batch 16 --checkpoint

The batch, the loss and the optimiser are those of training (`draw_batch`, `GeneratorTask`, AdamW);
codes and words are noise. Needs torch and numpy. Prints one line of JSON: seconds are wall time of
whole steps, drawing the batch included, after the warm-up.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from racm3.document import DocumentTokens
from racm3.generator.config import SIZES, GeneratorConfig, named_config
from racm3.generator.initial_weights import InitConfig
from racm3.generator.memory import parameter_count, training_memory
from racm3.generator.transformer import Generator
from racm3.objective.spans import SpanMixConfig
from racm3.sequence.layout import Layout
from racm3.training.examples import Example, QueryContexts
from racm3.training.generator import GeneratorTask
from racm3.training.stream import StreamConfig, draw_batch
from racm3.vocabulary import Vocabulary

_SPECIAL, _SENTINELS = 4, 1020
_DOCUMENTS = 64


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the steps and prints what they took."""
    print(json.dumps(measure(_parser().parse_args(arguments))))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Takes the warm-up steps, then the measured ones."""
    device = torch.device(given.device)
    torch.manual_seed(0)
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.set_float32_matmul_precision("high")
    task, model, draw = _task(given, device)
    optimizer = _adamw(model)
    losses, flops = [], 0.0
    for step in range(given.warmup + given.steps):
        if step == given.warmup:
            started, flops = _now(device), 0.0
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
        loss, numbers = task.loss(step, rank=0, world_size=1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        flops += task.step_flops(step)
        losses.append(numbers["loss"])
    seconds = (_now(device) - started) / given.steps
    flops /= given.steps
    data = _drawn(draw, range(given.warmup, given.warmup + given.steps))
    largest = int(data["positions_per_step"])
    memory = training_memory(
        model.config,
        vocabulary_size=model.vocabulary.size,
        tokens=largest,
        predictions=largest,
        bf16=not given.float32,
        packed=bool(given.pack),
    )
    return {
        "size": given.size,
        "device": _name(device),
        "torch": torch.__version__,
        "parameters": parameter_count(model.config, model.vocabulary.size),
        **{n: getattr(given, n) for n in ("batch", "pack", "compile", "checkpoint", "steps")},
        "bf16": not given.float32,
        "seconds_per_step": seconds,
        "tokens_per_second": data["tokens_per_step"] / seconds,
        **data,
        "model_flops_per_step": flops,
        "model_flops_per_second": flops / seconds,
        "mfu": flops / seconds / given.peak,
        "peak_memory_bytes": _peak(device),
        "formula_memory_bytes": memory.total(checkpointing=given.checkpoint),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def _task(
    given: argparse.Namespace, device: torch.device
) -> tuple[GeneratorTask, Generator, dict[str, Any]]:
    """The training task, its bare model, and what draws its batches."""
    vocabulary = Vocabulary(
        text_size=given.ids - _SPECIAL - _SENTINELS - given.codes,
        image_size=given.codes,
        num_sentinels=_SENTINELS,
    )
    layout = Layout(
        vocabulary=vocabulary, image_tokens=given.image_tokens, max_text_tokens=given.captions
    )
    model = Generator(
        _shape(given),
        vocabulary,
        generator=torch.Generator().manual_seed(0),
        init=InitConfig(truncate=4.0, positions_std=0.02),
    ).to(device)
    if given.compile:
        model.compile_blocks()
    draw = {
        "examples": _examples(layout),
        "layout": layout,
        "config": StreamConfig(
            batch_size=given.batch,
            max_k=given.k,
            k_per_batch=False,
            spans=SpanMixConfig(),
            max_text_tokens=given.captions,
            max_length=given.length,
            pack_length=given.pack or None,
        ),
        "seed": 0,
    }
    autocast = None if given.float32 else torch.bfloat16
    examples = draw["examples"]
    task = GeneratorTask(
        model, examples, layout=layout, config=draw["config"], seed=0, autocast=autocast
    )
    model.train()
    return task, model, draw


def _shape(given: argparse.Namespace) -> GeneratorConfig:
    return named_config(
        given.size, max_length=given.length, checkpoint_activations=given.checkpoint
    )


def _examples(layout: Layout) -> list[Example]:
    """Documents of noise; each has the two after it as contexts."""
    random = np.random.default_rng(0)
    low = min(5, layout.max_text_tokens)
    documents = [
        DocumentTokens(
            text=tuple(random.integers(0, layout.vocabulary.text_size, words).tolist()),
            image=tuple(
                random.integers(0, layout.vocabulary.image_size, layout.image_tokens).tolist()
            ),
        )
        for words in random.integers(low, layout.max_text_tokens + 1, _DOCUMENTS).tolist()
    ]
    return [
        Example(
            example_id=f"e{n}",
            document_id=f"d{n}",
            main=main,
            queries=tuple(
                QueryContexts(
                    query=query,
                    draw=0,
                    document_ids=(f"d{(n + 1) % _DOCUMENTS}", f"d{(n + 2) % _DOCUMENTS}"),
                    contexts=(
                        documents[(n + 1) % _DOCUMENTS],
                        documents[(n + 2) % _DOCUMENTS],
                    ),
                )
                for query in ("text", "image")
            ),
        )
        for n, main in enumerate(documents)
    ]


def _adamw(model: Generator) -> torch.optim.AdamW:
    """As `racm3.training.fit` has it: decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), fused=True)


def _drawn(draw: dict[str, Any], steps: range) -> dict[str, float]:
    """What the measured batches held, and the time it takes to draw one."""
    started, positions, tokens = time.perf_counter(), 0, 0
    for step in steps:
        batch, _ = draw_batch(**draw, step=step)
        positions += batch.labels.numel()
        tokens += int((batch.labels != draw["layout"].vocabulary.pad_id).sum())
    return {
        "tokens_per_step": tokens / len(steps),
        "positions_per_step": positions / len(steps),
        "padding": 1 - tokens / positions,
        "draw_seconds": (time.perf_counter() - started) / len(steps),
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="125m")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--steps", type=int, default=10, help="measured")
    add("--warmup", type=int, default=3, help="taken before, with the compilation")
    add("--batch", type=int, default=8, help="samples a step")
    add("--k", type=int, default=2, help="K ~ Uniform{0..k} contexts a sample")
    add("--pack", type=int, default=65_536, help="positions of a packed row; 0: one sample a row")
    add("--compile", action="store_true", help="torch.compile, block by block")
    add("--checkpoint", action="store_true", help="recompute activations")
    add("--float32", action="store_true", help="no bfloat16 autocast")
    add("--peak", type=float, default=989e12, help="FLOP/s of the device (H100, H200: bf16 dense)")
    add("--threads", type=int, default=0, help="of torch; 0: as it likes")
    add("--length", type=int, default=4096, help="longest sample")
    add("--image-tokens", type=int, default=1024)
    add("--captions", type=int, default=128, help="longest caption; they are 5 to so many tokens")
    add("--codes", type=int, default=8192)
    add("--ids", type=int, default=65_536, help="vocabulary in all")
    return parser


if __name__ == "__main__":
    main()
