"""What every test may use: a store, a run, one Ray for the whole session."""

from __future__ import annotations

import os

QUIET = {
    "DO_NOT_TRACK": "1",
    "MKL_NUM_THREADS": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "OMP_NUM_THREADS": "1",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.update(QUIET)  # before anything that reads them is imported

import importlib.util  # noqa: E402
import sys  # noqa: E402
import zlib  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from pipelines.runtime.context import start_run  # noqa: E402
from pipelines.runtime.store import LocalStore  # noqa: E402

_TABLES = importlib.util.spec_from_file_location(
    "score_tables", Path(__file__).with_name("score_tables.py")
)
sys.modules["score_tables"] = importlib.util.module_from_spec(_TABLES)  # tests are no package
_TABLES.loader.exec_module(sys.modules["score_tables"])

CASES = 1000


class Cases:
    """The generated examples of a law: a random generator each, the same in every run.

    Hypothesis finds smaller examples, but takes longer for 1,000 than most laws do.
    """

    def __init__(self, name):
        self.key, self.number = zlib.crc32(name.encode()), 0

    def __iter__(self):
        while self.number < CASES:
            yield np.random.default_rng((self.key, self.number))
            self.number += 1


@pytest.fixture
def cases(request):
    """1,000 examples (docs/laws.md); a law that does not come to the last one has failed."""
    drawn = Cases(request.node.name)
    yield drawn
    if drawn.number < CASES:
        pytest.fail(f"stopped in case {drawn.number} of {CASES}", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Torch computes on one thread: results do not depend on the machine."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def store(tmp_path):
    """A store of its own, empty."""
    return LocalStore(tmp_path / "store")


@pytest.fixture
def run(store):
    """A run in `store` that nobody watches."""
    return start_run(store, "test", {})


@pytest.fixture(scope="session")
def ray_executor():
    """One Ray of two workers for the session; it starts at the first use."""
    from pipelines.runtime.ray_executor import RayExecutor

    with RayExecutor(workers=2) as executor:
        yield executor
