"""`scripts/setup.sh` with an interpreter that notes what it is asked: nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "setup.sh"
INTERPRETER = """#!/usr/bin/env bash
echo "begins" >>asked
for _ in $(seq 600); do [ -e go ] && break; sleep 0.1; done
echo "ends" >>asked
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "requirements.lock").write_text("some==1.0\n", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text("", encoding="utf-8")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(INTERPRETER, encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / "go").touch()
    return tmp_path


def start(clone: Path) -> subprocess.Popen[str]:
    script = ["bash", str(clone / "scripts" / "setup.sh")]
    return subprocess.Popen(script, stdout=subprocess.PIPE, text=True)


def asked(clone: Path) -> list[str]:
    return (clone / "asked").read_text(encoding="utf-8").split()


def test_two_at_once_install_once_and_the_second_says_that_it_waits(clone: Path) -> None:
    (clone / "go").unlink()
    first = start(clone)
    while not (clone / "asked").exists():
        time.sleep(0.05)
    second = start(clone)
    assert second.stdout is not None
    said = second.stdout.readline()
    assert said == f"setup: waiting for another setup of this clone (process {first.pid})\n"
    (clone / "go").touch()
    assert "setup: done" in first.communicate(timeout=60)[0]
    assert second.communicate(timeout=60)[0] == "", "it finds all done and has nothing to say"
    assert [first.returncode, second.returncode] == [0, 0]
    assert asked(clone) == ["begins", "ends"] * 2, "the locked packages, then the project itself"
    assert not (clone / ".setup-lock").exists()


def test_whoever_was_killed_holds_up_nobody(clone: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (clone / ".setup-lock").write_text(f"{dead.pid}\n", encoding="utf-8")
    one = start(clone)
    one.communicate(timeout=60)
    assert one.returncode == 0
    assert not (clone / ".setup-lock").exists()


def test_a_changed_lock_is_installed_anew_and_an_equal_one_is_not(clone: Path) -> None:
    for _ in range(2):
        start(clone).communicate(timeout=60)
    assert len(asked(clone)) == 4
    (clone / "requirements.lock").write_text("some==2.0\n", encoding="utf-8")
    start(clone).communicate(timeout=60)
    assert len(asked(clone)) == 8
