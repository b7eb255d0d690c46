"""One training step of `laion-125m` with its real shapes, on this machine's CPU.

4,096 tokens at most, 1,024 image tokens, 65,536 ids, two contexts, packed rows, bfloat16 and
recomputed activations as the recipe has them; only the batch is smaller. Codes and words are noise.
A processor without AVX-512 multiplies in bfloat16 at a sixth of its speed in float32 (7.9 and 48.6
GFLOP/s on one core of an EPYC): there the step is in float32.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from flows.recipes import load_run
from racm3.document import DocumentTokens
from racm3.generator.transformer import Generator
from racm3.sequence.layout import Layout
from racm3.training.examples import Example, QueryContexts
from racm3.training.fit import fit
from racm3.training.generator import GeneratorTask
from racm3.training.stream import draw_batch
from racm3.vocabulary import Vocabulary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

IMAGE, CODES, TEXT, SENTINELS = 1024, 8192, 56_320, 1020


def examples() -> list[Example]:
    random = np.random.default_rng(0)
    documents = [
        DocumentTokens(
            text=tuple(random.integers(0, TEXT, 40).tolist()),
            image=tuple(random.integers(0, CODES, IMAGE).tolist()),
        )
        for _ in range(4)
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
                    document_ids=("x", "y"),
                    contexts=(documents[n - 1], documents[n - 2]),
                )
                for query in ("text", "image")
            ),
        )
        for n, main in enumerate(documents)
    ]


def test_a_step_of_the_125m_lowers_the_loss_of_its_batch() -> None:
    config = load_run("laion-125m").generators["ra"]
    vocabulary = Vocabulary(text_size=TEXT, image_size=CODES, num_sentinels=SENTINELS)
    layout = Layout(vocabulary=vocabulary, image_tokens=IMAGE, max_text_tokens=128)
    stream = replace(config.stream, batch_size=2)
    seed = next(
        seed
        for seed in range(50)
        if [len(row.context_ids) for row in _record(layout, stream, seed).rows] == [2, 0]
    )
    quick = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
    shape = config.shape(num_places=0)
    model = Generator(
        shape, vocabulary, generator=torch.Generator().manual_seed(0), init=config.init
    )
    assert vocabulary.size == 65_536
    assert sum(p.numel() for p in model.parameters()) == 138_533_376
    task = GeneratorTask(
        model,
        examples(),
        layout=layout,
        config=stream,
        seed=seed,
        autocast=torch.bfloat16 if quick else None,
    )
    assert config.checkpoint_activations
    assert config.bf16
    schedule = replace(config.fit, steps=1, flops_budget=None, warmup_steps=0)
    result = fit(task, schedule)
    (row,) = result.log
    assert 4 * 1064 <= row.tokens <= 4 * 1064 + 2 * 3 * 16
    assert row.metrics["padding"] == 0
    assert math.isfinite(row.grad_norm)
    assert row.metrics["loss"] > math.log(65_536)  # nothing is known yet; contexts add to it
    with torch.no_grad():
        model.train()
        after, _ = task.loss(0, rank=0, world_size=1)
    assert after.item() < row.metrics["loss"]


def _record(layout: Layout, stream, seed: int):
    return draw_batch(examples(), layout=layout, config=stream, seed=seed, step=0)[1]
