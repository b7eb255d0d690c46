from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
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
        (("compare", "a", "b", "--store", "empty"), "nothing was run here yet"),
        (("generate", "a cat", "--store", "empty"), "no models yet"),
        (("deploy", "smoke"), "PREFECT_API_URL is not set"),
    ],
)
def test_a_wrong_request_is_one_sentence(lab: Any, arguments: tuple[str, ...], said: str) -> None:
    done = lab.racm3(*arguments, check=2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("racm3: ")


@pytest.mark.prefect
@pytest.mark.timeout(180)
def test_a_file_without_links_is_refused(lab: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"TEXT": ["x"]}), tmp_path / "a.parquet")
    file = tmp_path / "mine.toml"
    file.write_text(
        'extends = "smoke"\nnamespace = "mine"\ncorpus = false\nmemories.extended = false\n'
        'sources = [{ name = "x", paths = ["a.parquet"], role = "train" }]\n'
        "ingest.split.x = { validation = 0.1, evaluation = 0.1 }\n"
    )
    done = lab.racm3("run", str(file), "--store", str(tmp_path / "store"), check=2)
    assert "a.parquet has no column that is known to hold the url" in done.stderr
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


def test_what_libraries_print_stays_out_of_the_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from flows.cli import work

    def noisy(_: Any) -> dict[str, str]:
        sys.stdout.write("(raylet) A worker died or was killed\n")
        return {"run_id": "one"}

    monkeypatch.setenv("RACM3_STORE", "")
    monkeypatch.setattr(work, "_flow", lambda _: noisy)
    work.run("smoke", store=str(tmp_path), as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["run_id"] == "one"
    assert "(raylet) A worker died" in printed.err


@pytest.mark.prefect
def test_a_killed_driver_leaves_no_prefect_server(lab: Any) -> None:
    code = """
        import time
        from flows.environment import prepare_environment
        prepare_environment()
        from flows.prefect_server import tie_server
        tie_server()
        from prefect.server.api.server import SubprocessASGIServer
        server = SubprocessASGIServer()  # as Prefect's client takes it
        server.port = server.find_available_port()
        print(server._run_uvicorn_command().pid, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=lab.environment, stdout=subprocess.PIPE
    ) as driver:
        assert driver.stdout is not None
        server = psutil.Process(int(driver.stdout.readline()))
        assert server.is_running()
        assert server.ppid() == driver.pid
        children = psutil.Process(driver.pid).children()
        driver.kill()
    _, alive = psutil.wait_procs([server, *children], timeout=30)
    assert alive == []
