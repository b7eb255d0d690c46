from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "smok"), "did you mean smoke?"),
        (("plan", "smoke", "--set", "generators.ra.layrs=3"), "did you mean layers?"),
        (("run", "smoke", "--artifact", "memory.x=1"), "--flow"),
        (("show", "abcdef", "--store", "empty"), "nothing was run here yet"),
        (("generate", "a cat", "--store", "empty"), "no models yet"),
        (("deploy", "smoke"), "PREFECT_API_URL is not set"),
    ],
)
def test_a_wrong_request_is_one_sentence(lab: Any, arguments: tuple[str, ...], said: str) -> None:
    done = lab.racm3(*arguments, check=2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("racm3: ")


def test_a_file_without_links_is_refused(lab: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"TEXT": ["x"]}), tmp_path / "a.parquet")
    file = tmp_path / "mine.toml"
    file.write_text(
        'extends = "smoke"\nnamespace = "mine"\n[[sources]]\nname = "x"\n'
        'paths = ["a.parquet"]\nrole = "train"\n'
    )
    store = tmp_path / "store"
    done = lab.racm3(
        "run", str(file), "--store", str(store), "--flow", "ingest", "--set", "corpus.flags=4",
        check=None, executor="local",
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert "url" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_plan_needs_no_corpus_and_writes_nothing(lab: Any, tmp_path: Path) -> None:
    planned = lab.json("plan", "emoji", "--store", str(tmp_path / "none"))
    assert {step["state"] for step in planned["steps"]} == {"pending"}
    assert len(planned["steps"]) == 27
    assert list((tmp_path / "none").iterdir()) == []


def test_the_backport_that_breaks_prefect_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.metadata

    from flows.environment import prepare_environment
    from pipelines.errors import UsageError

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.6")
    with pytest.raises(UsageError, match="pip uninstall -y dataclasses"):
        prepare_environment()
