"""What people see while they wait, and what watching costs."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.cli import progress
from flows.cli.progress import Lines, MemoryWatch, _pause


@given(st.floats(0.0, 60.0))
def test_watching_memory_takes_two_hundredths_of_a_core_at_most(cost: float) -> None:
    pause = _pause(cost)
    assert pause >= 1.0
    assert cost <= 0.02 * (cost + pause) * (1 + 1e-9)


def test_the_peak_is_what_was_held_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_pause", lambda cost: 0.05)
    with MemoryWatch() as before:
        time.sleep(0.1)
    with MemoryWatch() as watch:
        held = bytearray(b"x" * (256 << 20))
        deadline = time.monotonic() + 20
        while watch.peak < before.peak + (200 << 20) and time.monotonic() < deadline:
            time.sleep(0.1)
        del held
    assert watch.peak >= before.peak + (200 << 20)


def test_lines_tell_the_start_the_rest_and_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.start("embed", 10, 4)
    lines.finish("embed", "10 rows")
    first, last = capsys.readouterr().err.strip().splitlines()
    assert "embed: started, 4 of 10 shards done before" in first
    assert "embed: 10 rows (" in last
