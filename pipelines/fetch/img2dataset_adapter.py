"""img2dataset 1.47.0 as the engine of one shard, with our fetch function in place of its own.

Its `Downloader` drives the threads and writes the Parquet file through its `Resizer` (which hands
the bytes on as received) and `ParquetSampleWriter`. Its `download_image` opens `file:` links,
follows redirects anywhere and reads without end (docs/architecture.md names what replaces it).
Once replaced it stays replaced in this process: a thread that outlives its shard must not find it.

What img2dataset does not record (status, redirects, headers, consent) our fetch function notes
beside it; the rows it wrote are joined to the rows that were asked for, and a row that is missing
from its file becomes `lost_by_downloader`.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import logging
import math
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import PipelineError
from pipelines.fetch.client import fetch
from pipelines.fetch.outcomes import Fetched, Outcome
from pipelines.fetch.policy import FetchSettings

__all__ = ["IMG2DATASET_VERSION", "Downloaded", "FetchFunction", "Link", "download_links"]

_log = logging.getLogger(__name__)

IMG2DATASET_VERSION = "1.47.0"
_SIGNATURE = ("row", "timeout", "user_agent_token", "disallowed_header_directives")
_IMAGE_COLUMN = "jpg"  # the writer names the column of bytes after the format, whatever they are
_SLACK_SECONDS = 60.0

FetchFunction = Callable[[str, FetchSettings], Fetched]


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One row to download."""

    row_id: str
    url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Downloaded:
    """What became of one link."""

    row_id: str
    url: str
    fetched: Fetched
    sha256: str | None = None
    """Of the body, as img2dataset computed it and as we checked it."""
    md5: str | None = None
    fetched_at: str | None = None
    """End of the request, ISO 8601 UTC; None when it never ended."""


def download_links(
    links: Sequence[Link], settings: FetchSettings, *, fetcher: FetchFunction = fetch
) -> list[Downloaded]:
    """Downloads one shard of links.

    Args:
        links: rows with unique `row_id`.
        settings: limits and the hosts of this machine.
        fetcher: fetches one link.

    Returns:
        One record for each link, sorted by `row_id`.

    Raises:
        PipelineError: when img2dataset is another version, fails, does not end in time, or hands
            back bytes that are not those that were fetched.
    """
    if not links:
        return []
    call = _Call(links, settings, fetcher)
    # A shard that was given up may still be writing into the folder while it is removed.
    folder = tempfile.TemporaryDirectory(prefix="racm3-download-", ignore_cleanup_errors=True)
    with folder as staging, call:
        written = _run_downloader(call, Path(staging))
    return sorted(
        (_joined(link, call.notes.get(i), written.get(i)) for i, link in enumerate(links)),
        key=lambda done: done.row_id,
    )


# --- our function in the place of theirs ------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Note:
    """Beside img2dataset's row: everything but the body, and its digests."""

    fetched: Fetched
    size: int
    sha256: str | None
    md5: str | None
    fetched_at: str


class _Call:
    """One shard under way; registered under a token that img2dataset passes through."""

    def __init__(
        self, links: Sequence[Link], settings: FetchSettings, fetcher: FetchFunction
    ) -> None:
        self.token = uuid.uuid4().hex
        self.links, self.settings = links, settings
        self.notes: dict[int, _Note] = {}
        self._fetcher = fetcher

    def __enter__(self) -> None:
        _install()
        _CALLS[self.token] = self

    def __exit__(self, *_: object) -> None:
        del _CALLS[self.token]

    def fetch(self, index: int, url: str) -> bytes | None:
        """Fetches and notes one link; the body, when there is one to keep."""
        fetched = self._fetcher(url, self.settings)
        body = fetched.body
        self.notes[index] = _Note(
            fetched=replace(fetched, body=None),
            size=len(body or b""),
            sha256=None if body is None else hashlib.sha256(body).hexdigest(),
            md5=None if body is None else hashlib.md5(body, usedforsecurity=False).hexdigest(),
            fetched_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        return body


_CALLS: dict[str, _Call] = {}
_INSTALL_LOCK = threading.Lock()


def _safe_download_image(
    row: tuple[int, str],
    timeout: float,
    user_agent_token: str | None,
    disallowed_header_directives: object,
) -> tuple[int, io.BytesIO | None, str | None]:
    """In the place of `img2dataset.downloader.download_image`; same arguments, same answer.

    `user_agent_token` carries the token of the call: img2dataset hands it through untouched. A
    thread of a call that was given up finds no call, and fetches nothing.
    """
    key, url = row
    call = _CALLS.get(user_agent_token or "")
    if call is None:
        return key, None, "the shard was given up"
    body = call.fetch(key, url)
    if body is None:
        return key, None, call.notes[key].fetched.outcome.value
    return key, io.BytesIO(body), None


def _install() -> None:
    """Replaces the fetch function, after proof that it is the one we know.

    Raises:
        PipelineError: for another version or another signature.
    """
    downloader = _import_downloader()
    with _INSTALL_LOCK:
        if downloader.download_image is _safe_download_image:
            return
        found = version("img2dataset")
        if found != IMG2DATASET_VERSION:
            raise PipelineError(
                f"img2dataset {found} is installed, the fetch function is known to fit "
                f"{IMG2DATASET_VERSION} only; install that version"
            )
        parameters = tuple(inspect.signature(downloader.download_image).parameters)
        caller = downloader.download_image_with_retry.__code__.co_names
        if parameters != _SIGNATURE or "download_image" not in caller:
            raise PipelineError(
                f"img2dataset's download_image takes {parameters}, not {_SIGNATURE}, or is no "
                "longer what it calls; install the released version"
            )
        downloader.download_image = _safe_download_image


def _import_downloader() -> Any:
    """Imports img2dataset without its calls home."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("WANDB_MODE", "disabled")
    import img2dataset.downloader

    return img2dataset.downloader


# --- their machinery --------------------------------------------------------------------------


def _run_downloader(call: _Call, staging: Path) -> dict[int, Mapping[str, Any]]:
    """Runs img2dataset over the shard; its rows by index into the links."""
    source = staging / "links.arrow"
    table = pa.table({name: [getattr(link, name) for link in call.links] for name in _COLUMNS})
    with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    output = staging / "output"
    output.mkdir()
    _within_time(_downloader(call, output).download_shard, (0, str(source)), _limit(call))
    rows = pq.read_table(output / "00000.parquet").to_pylist()
    return {int(row["key"]): row for row in rows}


_COLUMNS = ("url", "row_id")


def _downloader(call: _Call, output: Path) -> Any:
    from img2dataset.resizer import Resizer
    from img2dataset.writer import ParquetSampleWriter

    return _import_downloader().Downloader(
        sample_writer_class=ParquetSampleWriter,
        resizer=Resizer(
            image_size=0,
            resize_mode="no",
            resize_only_if_bigger=False,
            encode_format=_IMAGE_COLUMN,
            disable_all_reencoding=True,
        ),
        thread_count=min(call.settings.threads, len(call.links)),
        save_caption=False,
        extract_exif=False,
        output_folder=str(output),
        column_list=list(_COLUMNS),
        timeout=call.settings.deadline,
        number_sample_per_shard=len(call.links),
        oom_shard_count=5,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format=_IMAGE_COLUMN,
        retries=0,  # ours are in the client, where refusals are told from failures
        user_agent_token=call.token,
        disallowed_header_directives=None,
    )


def _limit(call: _Call) -> float:
    """Seconds that the shard takes when every single link uses up its time."""
    rounds = math.ceil(len(call.links) / min(call.settings.threads, len(call.links)))
    tries = call.settings.retries + 1
    return rounds * tries * (call.settings.deadline + 1.0) + _SLACK_SECONDS


def _within_time(function: Callable[[Any], Any], argument: Any, seconds: float) -> None:
    """Runs a function in a thread of its own and gives it up after so many seconds.

    Raises:
        PipelineError: when it fails or does not end.
    """
    problems: list[BaseException] = []

    def run() -> None:
        try:
            function(argument)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run, name="img2dataset", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise PipelineError(
            f"img2dataset did not end a shard within {seconds:.0f} s; the shard is tried again"
        )
    if problems:
        raise PipelineError(
            f"img2dataset failed on a shard with {type(problems[0]).__name__}: {problems[0]}"
        ) from problems[0]


# --- joining ----------------------------------------------------------------------------------


def _joined(link: Link, note: _Note | None, row: Mapping[str, Any] | None) -> Downloaded:
    """One link with what both sides say of it."""
    if note is None:
        lost = Fetched(outcome=Outcome.LOST_BY_DOWNLOADER, error="it was never fetched")
        return Downloaded(row_id=link.row_id, url=link.url, fetched=lost)
    fetched = note.fetched
    done = Downloaded(row_id=link.row_id, url=link.url, fetched=fetched, fetched_at=note.fetched_at)
    if fetched.outcome is not Outcome.KEPT:
        return done
    if row is None or row["status"] != "success":
        detail = "its row is missing" if row is None else str(row["error_message"])
        return replace(done, fetched=fetched.failed(Outcome.LOST_BY_DOWNLOADER, detail))
    body = row[_IMAGE_COLUMN]
    same = hashlib.sha256(body).hexdigest() == note.sha256 == row["sha256"]
    if not same or (row["row_id"], row["url"]) != (link.row_id, link.url):
        raise PipelineError(
            f"img2dataset handed back other bytes than were fetched for row {link.row_id[:12]}; "
            "this is a defect"
        )
    return replace(done, fetched=replace(fetched, body=body), sha256=note.sha256, md5=note.md5)
