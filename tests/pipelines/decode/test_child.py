"""The child that decodes: it may die, its parent and its other files may not."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.decode.child import (
    ChildLimits,
    Decoder,
    _exactly,
    _parsed,
    _read_frame,
    _write_frame,
)
from pipelines.decode.normalize import NormalizeOptions, Outcome, normalize

OPTIONS = NormalizeOptions(image_size=16)


def picture(seed, size=32, kind="PNG"):
    values = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(values).save(sink, kind)
    return sink.getvalue()


def test_a_child_gives_what_the_parent_would():
    files = [picture(seed) for seed in range(5)] + [picture(9, kind="JPEG"), b"<html>"]
    with Decoder(OPTIONS, ChildLimits(batch=2)) as decoder:
        done = decoder.decode(files)
    assert [d.image for d in done[:-1]] == [normalize(file, OPTIONS) for file in files[:-1]]
    assert done[-1].outcome is Outcome.NOT_AN_IMAGE
    assert decoder.crashes == 0
    assert decoder.pid is None


def test_a_killed_child_costs_nothing():
    with Decoder(OPTIONS) as decoder:
        decoder.decode([picture(0)])
        first = decoder.pid
        os.kill(first, signal.SIGKILL)
        done = decoder.decode([picture(seed) for seed in range(100)])
        assert {d.outcome for d in done} == {Outcome.KEPT}
        assert decoder.pid != first
        assert decoder.crashes == 1


def test_a_child_killed_at_work_costs_nothing():
    files = [picture(seed, size=400) for seed in range(80)]
    with Decoder(OPTIONS) as decoder:
        decoder.decode(files[:1])
        pid = decoder.pid
        timer = threading.Timer(0.1, os.kill, (pid, signal.SIGKILL))
        timer.start()
        done = decoder.decode(files)
        timer.join()
        assert {d.outcome for d in done} == {Outcome.KEPT}
        assert len({d.image.pixel_sha256 for d in done}) == 80
        assert decoder.crashes == 1


def gif_of_many_frames(count):
    """A file whose frames take about 2 microseconds each to count."""
    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * count + b";"


def test_the_file_that_ends_the_child_is_named_and_the_others_are_kept():
    files = [picture(2), picture(3), gif_of_many_frames(6_000_000), picture(4)]
    with Decoder(OPTIONS, ChildLimits(cpu_seconds=1)) as decoder:
        done = decoder.decode(files)
    assert [d.outcome.value for d in done] == ["kept", "kept", "decoder_failed", "kept"]
    assert decoder.crashes == 2
    assert "twice" in done[2].error


def test_memory_is_limited():
    bomb = Image.new("RGB", (7000, 7000), (1, 2, 3))  # 49 megapixels, 150 kB on the wire
    sink = io.BytesIO()
    bomb.save(sink, "PNG")
    with Decoder(OPTIONS, ChildLimits(memory_bytes=320 * 2**20)) as decoder:
        done = decoder.decode([picture(1), sink.getvalue(), picture(2)])
    assert [d.outcome.value for d in done] == ["kept", "decoder_failed", "kept"]


def test_nothing_but_the_answer_comes_out_of_a_child(monkeypatch):
    """The child has no secret of its parent, and can write no file."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    with Decoder(OPTIONS) as decoder:
        decoder.decode([picture(1)])
        process = Path(f"/proc/{decoder.pid}")
        assert b"planted" not in (process / "environ").read_bytes()
        lines = (process / "limits").read_text().splitlines()
        assert "NoNewPrivs:\t1" in (process / "status").read_text()
    limits = {line[:25].strip(): line[26:].split()[0] for line in lines}
    assert limits["Max file size"] == "0"
    assert limits["Max address space"] == str(2 * 2**30)
    assert int(limits["Max cpu time"]) <= 15
    assert limits["Max open files"] == "16"


def test_a_child_ends_with_its_decoder():
    with Decoder(OPTIONS) as decoder:
        decoder.decode([picture(1)])
        pid = decoder.pid
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"outcome": "wonderful"},
        {"outcome": "kept"},
        {"outcome": "kept", "width": None},
        {"outcome": "truncated"},
    ],
)
def test_nonsense_from_a_child_is_refused(answer):
    with pytest.raises(ValueError):  # noqa: PT011 - the message differs by the nonsense
        _parsed(answer, b"")


def test_frames_survive_the_wire_and_nothing_else_does():
    wire = io.BytesIO()
    _write_frame(wire, {"a": 1}, b"\0" * 100)
    wire.seek(0)
    assert _read_frame(wire) == ({"a": 1}, b"\0" * 100)
    for bad in (b"\xff" * 8, b"\0\0\0\2\0\0\0\0[]", b"\0\0\0\1\0\0\0\0{"):
        with pytest.raises(ValueError):  # noqa: PT011 - JSON's or ours
            _read_frame(io.BytesIO(bad))
    with pytest.raises(EOFError):
        _exactly(io.BytesIO(b"abc"), 4)
