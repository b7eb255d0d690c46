"""What the tests of several ranks run: two processes of one gloo group, in a process of its own.

    python two_ranks.py FOLDER

Torch is imported once, then the process forks. What each rank found is written to FOLDER.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from safetensors.torch import save_file

from racm3.document import DocumentTokens
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.objective.spans import SpanMixConfig
from racm3.sequence.layout import Layout
from racm3.training.examples import Example, QueryContexts
from racm3.training.fit import FitConfig, fit
from racm3.training.generator import GeneratorTask, Validation
from racm3.training.records import NonFiniteLoss
from racm3.training.sharding import shard_blocks, whole_tensors
from racm3.training.stream import StreamConfig
from racm3.training.tallies import added, as_tallies
from racm3.vocabulary import Vocabulary

LAYOUT = Layout(vocabulary=Vocabulary(20, 16, 2), image_tokens=4, max_text_tokens=6)
STREAM = StreamConfig(
    batch_size=8,
    max_text_tokens=6,
    max_length=120,
    k_per_batch=False,
    alpha=0.3,
    spans=SpanMixConfig(max_masks=2),
)
CONFIG = FitConfig(
    steps=6, learning_rate=4e-3, warmup_steps=2, validate_every=3, checkpoint_every=2, log_every=3
)
STOP = 3
"""The step at which a run is interrupted."""
BAD = 3
"""The step whose loss is not finite."""


class Interruption(Exception):
    """Somebody pulled the plug."""


def examples(n: int = 13) -> list[Example]:
    """Captions of 1 to 6 tokens, so that ranks have unequally many labels."""
    r = np.random.default_rng(0)
    documents = [
        DocumentTokens(
            text=tuple(r.integers(0, 20, 1 + i % 6).tolist()),
            image=tuple(r.integers(0, 16, 4).tolist()),
        )
        for i in range(n)
    ]
    return [
        Example(
            example_id=f"e{i}",
            document_id=f"d{i}",
            main=document,
            queries=tuple(
                QueryContexts(
                    query=query,
                    draw=0,
                    document_ids=("x", "y"),
                    contexts=(document, documents[i - 1]),
                )
                for query in ("text", "image")
            ),
        )
        for i, document in enumerate(documents)
    ]


def make_model() -> Generator:
    """A generator whose blocks are recomputed in the backward pass."""
    config = GeneratorConfig(
        layers=2,
        width=24,
        heads=3,
        positions="document",
        num_places=LAYOUT.places.size,
        checkpoint_activations=True,
    )
    return Generator(config, LAYOUT.vocabulary, generator=torch.Generator().manual_seed(0))


class Task(GeneratorTask):
    """Can be interrupted, and can have its loss spoilt on one rank."""

    def __init__(
        self, *, stop: int | None = None, bad_rank: int | None = None, device="cpu", **changes
    ) -> None:
        model = make_model().to(device)
        super().__init__(model, examples(), layout=LAYOUT, config=STREAM, seed=5, **changes)
        self.stop, self.bad_rank = stop, bad_rank

    def loss(self, step, *, rank, world_size):
        if step == self.stop:
            raise Interruption
        loss, numbers = super().loss(step, rank=rank, world_size=world_size)
        return loss * (torch.inf if step == BAD and rank == self.bad_rank else 1.0), numbers


def validation() -> Validation:
    """Held-out perplexities, with wrong contexts."""
    held_out = examples()[:5]
    return Validation(examples=held_out, layout=LAYOUT, ks=(0,), pool=[e.main for e in held_out])


def gradients(task: GeneratorTask, *, parts: int, rank: int = 0, world_size: int = 1):
    """Gradients of one step by name, and its tallies."""
    total = {}
    losses = task.micro_losses(2, rank=rank, world_size=world_size, parts=parts)
    for loss, numbers in losses:
        loss.backward()
        total = added(total, as_tallies(numbers))
    total.pop("tokens")  # with the padding of its own rows
    found = {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}
    return whole_tensors(found), total


def comparable(log):
    """Rows of a log as plain values, without seconds."""
    return [dataclasses.asdict(dataclasses.replace(row, seconds=0.0)) for row in log]


WRAPS = {
    "ddp": torch.nn.parallel.DistributedDataParallel,
    "fsdp2": shard_blocks,
    "bf16": partial(shard_blocks, dtype=torch.bfloat16),
}


class Rank:
    """One process of two: what it runs, and what it writes."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.ranks = {"rank": rank, "world_size": 2}

    def write(self, name: str, tensors, values) -> None:
        save_file(tensors, self.folder / f"{name}-{self.rank}.safetensors")
        (self.folder / f"{name}-{self.rank}.json").write_text(json.dumps(values))

    def gradients(self, wrap: str, parts: int) -> None:
        task = Task(autocast=torch.bfloat16 if wrap == "bf16" else None)
        task.model = WRAPS[wrap](task.model)
        found, numbers = gradients(task, parts=parts, **self.ranks)
        tensors = {name.removeprefix("module."): value for name, value in found.items()}
        self.write(f"gradients-{wrap}-{parts}", tensors, numbers)

    def fit(self, name: str, wrap: str, where: str | None = None, config=CONFIG, **trouble) -> None:
        seen = []
        task = Task(on_draw=lambda record: seen.append(record.batch_digest), **trouble)
        try:
            result = fit(
                task,
                config,
                checkpoint_dir=None if where is None else self.folder / where,
                validate=validation(),
                wrap=WRAPS[wrap],
                **self.ranks,
            )
        except Interruption:
            return
        self.write(name, task.model.state_dict(), [comparable(result.log), seen])

    def breaks(self) -> None:
        task = Task(bad_rank=1)
        try:
            fit(
                task, CONFIG, checkpoint_dir=self.folder / "broken", wrap=WRAPS["ddp"], **self.ranks
            )
        except NonFiniteLoss as error:
            names = list(error.examples.example_ids) if error.examples else []
            self.write("broken", {}, [error.step, names, str(error)])

    def run(self) -> None:
        """Everything, in an order that both ranks share."""
        for wrap, parts in (("ddp", 1), ("ddp", 2), ("fsdp2", 1), ("fsdp2", 2), ("bf16", 2)):
            self.gradients(wrap, parts)
        self.fit("ddp", "ddp", config=dataclasses.replace(CONFIG, accumulate=2))
        self.fit("fsdp2", "fsdp2", "whole")
        self.fit("stopped", "fsdp2", "by-two", stop=STOP)
        for name in ("by-one", "by-two"):
            if self.rank == 0:
                shutil.copytree(self.folder / name, self.folder / f"{name}-again")
        torch.distributed.barrier()
        self.fit("resumed", "fsdp2", "by-two-again")
        self.fit("taken-over", "fsdp2", "by-one-again")
        self.breaks()


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    Rank(folder, rank).run()
    torch.distributed.destroy_process_group()


def main(folder: Path) -> int:
    """Runs both ranks; the first exit code that is not 0."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_rank, args=(rank, folder)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return next((p.exitcode for p in processes if p.exitcode), 0)


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sys.exit(main(Path(sys.argv[1])))
