"""Toy stages for the tests of the runner: source rows in, documents' codes out."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pyarrow as pa

from pipelines.runtime.ledger import NewSource, add_sources, as_selection
from pipelines.runtime.stage import (
    FitOutput,
    FitStage,
    ShardOutput,
    ShardPlan,
    ShardStage,
    StageConfig,
)

ROWS = 5


class Config(StageConfig):
    factor: int = 3


class Tokens(ShardStage[Config]):
    """Reads numbers from text files; a shard whose name is in `trouble` misbehaves."""

    name, version, kind, config_type = "toy_tokens", 1, "image_tokens", Config

    def __init__(self, trouble: dict[str, str] | None = None, log: Path | None = None) -> None:
        self.trouble, self.log = trouble or {}, log

    def plan(self, config, inputs, reader):
        shards = sorted(inputs["sources"].shards, key=lambda s: s.tags["order"])
        return [ShardPlan(inputs={"sources": (shard,)}, tags=dict(shard.tags)) for shard in shards]

    def build(self, config, whole, reader):
        return _Function(self.trouble, self.log, config.factor)


class _Function:
    def __init__(self, trouble, log, factor):
        self.trouble, self.log, self.factor = trouble, log, factor

    def __call__(self, plan, reader):
        (shard,) = plan.inputs["sources"]
        source = shard.tags["source"]
        trouble = self.trouble.get(source)
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{source} {os.getpid()}\n")
            calls = self.log.read_text().split().count(source)
        if trouble == "raise":
            raise ValueError(f"{source} is poison")
        if trouble == "kill" and calls == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "hang" and calls == 1:
            time.sleep(300)
        numbers = [int(word) for word in reader.file(shard).read_text().split()]
        table = pa.table(
            {
                "document_id": [f"{source}-{n:04d}" for n in numbers],
                "codes": [[n * self.factor, n] for n in numbers],
                "grid_height": [1] * len(numbers),
                "grid_width": [2] * len(numbers),
            }
        )
        lost = 1 if trouble == "lose" else 0
        return ShardOutput(table=table, rows_in=len(numbers) + lost, counts={"seen": len(numbers)})


class Fit(FitStage[Config]):
    """Counts its tries in the progress folder; dies or raises where it is told to."""

    name, version, kind, config_type = "toy_fit", 1, "text_tokenizer", Config

    def __init__(self, trouble: str = "", group: int = 0) -> None:
        self.trouble, self.group = trouble, group

    def workers(self, config):
        return self.group

    def fit(self, config, inputs, reader, workspace):
        mark = workspace.progress / f"tries-{workspace.rank}"
        tries = int(mark.read_text()) + 1 if mark.exists() else 1
        mark.write_text(str(tries))
        workspace.report(tries, 3, "counting")
        if self.trouble == "kill" and tries == 1 and workspace.rank == 0:
            time.sleep(2 if self.group else 0)  # past the start of the group
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "raise":
            raise ValueError("this fit cannot succeed")
        total = self._together(workspace)
        if workspace.after_checkpoint:
            workspace.after_checkpoint(1)
        path = workspace.staging / "tokenizer.json"
        path.write_text(f'{{"factor": {config.factor}}}')
        facts = {"tries": tries, "world": workspace.world_size, "total": total}
        return FitOutput(files={"tokenizer.json": path}, rows_in=2, rows_out=2, facts=facts)

    def _together(self, workspace):
        """Sum of rank + 1 over the group, through the gradient of a wrapped module."""
        if workspace.wrap is None:
            return 1.0
        import torch

        model = workspace.wrap(torch.nn.Linear(1, 1, bias=False))
        model(torch.tensor([[workspace.rank + 1.0]])).sum().backward()
        (weight,) = model.parameters()
        return weight.grad.item() * workspace.world_size


def selection(store, folder, names, numbers=None):
    """A ledger selection of one file a name."""
    sources = []
    for index, name in enumerate(names):
        path = folder / f"{name}.txt"
        first = index * 100
        path.write_text(" ".join(map(str, numbers or range(first, first + ROWS))))
        sources.append(NewSource(source=name, path=path, role="train", as_of="2026-11-24"))
    return as_selection(add_sources(store, "test", sources))
