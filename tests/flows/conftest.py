"""One smoke run for all tests of this folder: Prefect's own server, Ray with two workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SMALL = """
extends = "smoke"
max_poisoned = 0
[corpus]
concepts = 40
flags = 16
familiar = 8
validation = 8
unseen_flags = 6
unseen_share = 0.1
rows_per_file = 64
[encoder.training]
batch_size = 32
fit.steps = 4
[scorer.training]
batch_size = 32
fit.steps = 4
[image_tokenizer]
fit.steps = 12
task.warmup_steps = 4
task.revive_every = 4
[generators.ra]
fit.steps = 4
fit.validate_every = 4
workers = 0
[generators.vanilla]
fit.steps = 4
fit.validate_every = 4
[generate]
prompts_per_group = 2
[score]
resamples = 20
"""


@dataclass(frozen=True)
class Lab:
    """A store, its run file and its command line."""

    folder: Path
    environment: dict[str, str]

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def file(self) -> Path:
        return self.folder / "small.toml"

    def racm3(
        self, *arguments: str, check: int | None = 0, executor: str = "ray"
    ) -> subprocess.CompletedProcess[str]:
        """The command line in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli.main", *arguments],
            env=self.environment | {"RACM3_EXECUTOR": executor},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if check is not None:
            assert done.returncode == check, done.stderr[-4000:]
        return done

    def json(self, *arguments: str, executor: str = "ray") -> Any:
        """What a command prints with --json."""
        return json.loads(self.racm3(*arguments, "--json", executor=executor).stdout)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """An empty store."""
    folder = tmp_path_factory.mktemp("lab")
    cache = os.environ.get("RACM3_CACHE") or str(Path.home() / ".cache" / "racm3")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RACM3_", "PREFECT_"))}
    environment |= {
        "RACM3_CACHE": cache,
        "RACM3_STORE": str(folder / "store"),
        "RACM3_WORKERS": "2",
        "PREFECT_HOME": str(folder / "prefect"),
    }
    found = Lab(folder=folder, environment=environment)
    found.file.write_text(SMALL, encoding="utf-8")
    return found


@pytest.fixture(scope="session")
def finished(lab: Lab) -> dict[str, Any]:
    """The small run, done once through Prefect and Ray; what it printed."""
    result: dict[str, Any] = lab.json("run", str(lab.file))
    return result
