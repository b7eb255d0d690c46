"""`scripts/setup.sh` with an interpreter that notes what it is asked: nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "setup.sh"
INTERPRETER = """#!/usr/bin/env bash
echo "begins" >>asked
sleep 0.5
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
    return tmp_path


def start(clone: Path) -> subprocess.Popen[str]:
    script = ["bash", str(clone / "scripts" / "setup.sh")]
    return subprocess.Popen(script, stdout=subprocess.PIPE, text=True)


def asked(clone: Path) -> list[str]:
    return (clone / "asked").read_text(encoding="utf-8").split()


def test_two_at_once_install_once_and_the_second_says_that_it_waits(clone: Path) -> None:
    both = [start(clone), start(clone)]
    told = [one.communicate(timeout=60)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert asked(clone) == ["begins", "ends"] * 2, "the locked packages, then the project itself"
    assert sum("setup: waiting for another setup of this clone" in text for text in told) == 1
    assert sum("setup: done" in text for text in told) == 1
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
