"""One smoke run for all tests of this folder: Prefect's own server, Ray with two workers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.runtime.catalog import move_ref, publish, read_ref
from pipelines.runtime.store import LocalStore
from storage_schemas.fingerprint import digest_of

ILL_HOST = Path(__file__).with_name("ill_host.py")

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
        self,
        *arguments: str,
        check: int | None = 0,
        executor: str = "ray",
        timeout: float = 240,  # seconds
    ) -> subprocess.CompletedProcess[str]:
        """The command line in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli.main", *arguments],
            env=self.environment | {"RACM3_EXECUTOR": executor},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check is not None:
            assert done.returncode == check, done.stderr[-4000:]
        return done

    def json(self, *arguments: str, **options: Any) -> Any:
        """What a command prints with --json."""
        return json.loads(self.racm3(*arguments, "--json", **options).stdout)


@pytest.fixture(scope="session")
def small() -> str:
    """The run file of `lab`, as it is at first."""
    return SMALL


@pytest.fixture(scope="session")
def drawings() -> Path:
    """Folder of the demo's drawings: made once on a machine."""
    return Path(os.environ.get("RACM3_CACHE") or Path.home() / ".cache" / "racm3")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Lab:
    """An empty store."""
    folder = tmp_path_factory.mktemp("lab")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RACM3_", "PREFECT_"))}
    environment |= {
        "RACM3_CACHE": str(drawings),
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


@pytest.fixture(scope="session")
def ill_host() -> Iterator[str]:
    """`address:port` of a host that is not the demo's, and that serves well and ill."""
    spec = importlib.util.spec_from_file_location("ill_host", ILL_HOST)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.serve() as address:
        yield address


@pytest.fixture
def mixed(lab: Lab, finished: Any, tmp_path: Path) -> LocalStore:
    """A copy of the store."""
    shutil.copytree(lab.store, tmp_path / "mixed")
    return LocalStore(tmp_path / "mixed")


@pytest.fixture
def remade(mixed: LocalStore) -> Callable[[str, str, str], str]:
    """Gives a reference's artifact another model of some kind among its inputs; returns its id."""

    def make(name: str, kind: str, model: str) -> str:
        old = read_ref(mixed, "smoke", name)
        assert old is not None
        other = digest_of(["other", kind, model])
        inputs = tuple(
            replace(one, artifact_id=model, content_digest=other) if one.kind == kind else one
            for one in old.inputs
        )
        made = replace(old, artifact_id=digest_of([old.artifact_id, model]), inputs=inputs)
        move_ref(mixed, "smoke", name, publish(mixed, made))
        return made.artifact_id

    return make
