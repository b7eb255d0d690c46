"""A child process that decodes files from strangers, so that a crash or a bomb ends only it.

The child limits itself before it reads the first byte: memory, processor time, file size, open
files, no new privileges. Parent and child talk in length-prefixed frames of JSON and raw bytes,
never pickle: a decoder that was taken over cannot make its parent run code. The child answers file
by file; the file after the last answer is the one that ended it. It gets one more try, alone in a
fresh child, and is then `decoder_failed`.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from pipelines.decode.normalize import (
    Normalized,
    NormalizeOptions,
    Outcome,
    UnusableError,
    normalize,
)

__all__ = ["ChildLimits", "Decoded", "Decoder"]

_HEADER = struct.Struct(">II")
_LONGEST_JSON = 65_536
_LONGEST_BODY = 256 * 2**20
_LONGEST_ERROR = 300
_PR_SET_NO_NEW_PRIVS = 38


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildLimits:
    """What the child may use."""

    memory_bytes: int = 2 * 2**30
    """Address space."""
    cpu_seconds: int = 10
    """Processor time for one file."""
    wall_seconds: float = 30.0
    """Wall time for one file."""
    batch: int = 64
    """Files sent to a child at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What became of one file."""

    outcome: Outcome
    image: Normalized | None = None
    error: str | None = None


class Decoder:
    """Decodes batches of files in a child; use it as a context manager."""

    def __init__(self, options: NormalizeOptions, limits: ChildLimits | None = None) -> None:
        self._options, self._limits = options, limits or ChildLimits()
        self._child: _Child | None = None
        self.crashes = 0
        """Children lost so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def decode(self, files: Sequence[bytes]) -> list[Decoded]:
        """One answer for each file, in order; never raises for what a file does."""
        results: list[Decoded] = []
        while len(results) < len(files):
            start = len(results)
            answers = self._run(files[start : start + self._limits.batch])
            results += answers
            if self._child is None and len(results) < len(files):
                results.append(self._alone(files[len(results)]))
        return results

    @property
    def pid(self) -> int | None:
        """Of the child, when one is running."""
        return None if self._child is None else self._child.pid

    def _alone(self, file: bytes) -> Decoded:
        """Second try of the file that ended a child."""
        answers = self._run([file])
        if answers:
            return answers[0]
        return Decoded(outcome=Outcome.DECODER_FAILED, error="it ended the decoder process twice")

    def _run(self, files: Sequence[bytes]) -> list[Decoded]:
        """Answers for the files up to the one that ended the child, if one did."""
        if self._child is None:
            self._child = _Child(self._options, self._limits)
        answers: list[Decoded] = []
        try:
            for answer in self._child.decode(files):
                answers.append(answer)
        except (OSError, EOFError, ValueError):
            self.crashes += 1
            self._stop()
        return answers

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None


class _Child:
    """The parent's side of one child process."""

    def __init__(self, options: NormalizeOptions, limits: ChildLimits) -> None:
        self._limits = limits
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.decode.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_child_environment(),
            close_fds=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout
        settings = {"options": asdict(options), "limits": asdict(limits)}
        with contextlib.suppress(OSError):
            _write_frame(self._to, settings, b"")

    @property
    def pid(self) -> int:
        return self._process.pid

    def decode(self, files: Sequence[bytes]) -> Iterator[Decoded]:
        """Sends a batch and yields the answers.

        Raises:
            OSError, EOFError, ValueError: when the child is gone or talks nonsense.
        """
        sender = threading.Thread(target=self._send, args=(files,), daemon=True)
        sender.start()
        for _ in files:
            with self._watched():
                answer, body = _read_frame(self._from)
            yield _parsed(answer, body)
        sender.join()

    def stop(self) -> None:
        """Ends the child, whatever it does."""
        self._process.kill()
        for stream in (self._to, self._from):
            with contextlib.suppress(OSError):
                stream.close()
        self._process.wait()

    def _send(self, files: Sequence[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):  # the reader notices that the child is gone
            for file in files:
                _write_frame(self._to, {}, file)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        timer = threading.Timer(self._limits.wall_seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _child_environment() -> dict[str, str]:
    """Nothing but what Python needs: the child knows no secret."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    places = [str(Path(entry).absolute()) for entry in sys.path]
    return kept | {
        "PYTHONPATH": os.pathsep.join(places),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


# --- frames -----------------------------------------------------------------------------------


def _write_frame(stream: IO[bytes], head: dict[str, Any], body: bytes) -> None:
    text = json.dumps(head).encode()
    stream.write(_HEADER.pack(len(text), len(body)) + text)
    stream.write(body)
    stream.flush()


def _read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """One frame.

    Raises:
        EOFError: at the end of the stream.
        ValueError: when a length is absurd or the head is no JSON object.
    """
    text_length, body_length = _HEADER.unpack(_exactly(stream, _HEADER.size))
    if text_length > _LONGEST_JSON or body_length > _LONGEST_BODY:
        raise ValueError("a frame is longer than any may be")
    head = json.loads(_exactly(stream, text_length))
    if not isinstance(head, dict):
        raise ValueError("a frame does not begin with an object")
    return head, _exactly(stream, body_length)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _parsed(answer: dict[str, Any], body: bytes) -> Decoded:
    """An answer, checked: it comes from a process that has read hostile bytes."""
    try:
        outcome = Outcome(answer["outcome"])
        if outcome is not Outcome.KEPT:
            return Decoded(outcome=outcome, error=str(answer["error"])[:_LONGEST_ERROR])
        image = Normalized(
            png=body,
            width=int(answer["width"]),
            height=int(answer["height"]),
            file_width=int(answer["file_width"]),
            file_height=int(answer["file_height"]),
            mode=str(answer["mode"]),
            frames=int(answer["frames"]),
            pixel_sha256=str(answer["pixel_sha256"]),
            perceptual_hash=str(answer["perceptual_hash"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"an answer lacks {error}") from error
    return Decoded(outcome=outcome, image=image)


# --- the child --------------------------------------------------------------------------------


def _serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Answers frames until the parent hangs up."""
    settings, _ = _read_frame(source)
    options = NormalizeOptions(**settings["options"])
    limits = ChildLimits(**settings["limits"])
    _prepare(options)
    _limit(limits)
    while True:
        try:
            _, file = _read_frame(source)
        except EOFError:
            return
        _grant_time(limits.cpu_seconds)
        answer, body = _answer(file, options)
        _write_frame(sink, answer, body)


def _answer(file: bytes, options: NormalizeOptions) -> tuple[dict[str, Any], bytes]:
    try:
        done = normalize(file, options)
    except UnusableError as error:
        return {"outcome": error.outcome, "error": _clean(str(error))}, b""
    except Exception as error:
        detail = _clean(f"{type(error).__name__}: {error}")
        return {"outcome": Outcome.DECODER_FAILED, "error": detail}, b""
    facts = {
        "width": done.width,
        "height": done.height,
        "file_width": done.file_width,
        "file_height": done.file_height,
        "mode": done.mode,
        "frames": done.frames,
        "pixel_sha256": done.pixel_sha256,
        "perceptual_hash": done.perceptual_hash,
    }
    return {"outcome": Outcome.KEPT} | facts, done.png


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:_LONGEST_ERROR]


def _prepare(options: NormalizeOptions) -> None:
    """Loads every decoder while files may still be opened."""
    from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    assert all((GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin))
    Image.MAX_IMAGE_PIXELS = options.max_pixels


def _limit(limits: ChildLimits) -> None:
    """Gives up what a decoder does not need, for good."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _drop_privileges()


def _drop_privileges() -> None:
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _grant_time(seconds: int) -> None:
    """Lets the next file use so much processor time; beyond it the kernel ends the child."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds + 1, hard))


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
