"""img2dataset with our fetch function: the contract, and that no row is lost."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading

import pytest

from pipelines.errors import PipelineError
from pipelines.fetch import img2dataset_adapter as adapter
from pipelines.fetch.img2dataset_adapter import Link, download_links
from pipelines.fetch.outcomes import Fetched, Outcome


def links_to(*paths):
    return [Link(row_id=f"{i:04d}", url=f"http://hostile.test{p}") for i, p in enumerate(paths)]


# The real function, seen by a process in which nothing has been replaced.
LOOK = """
import inspect, json
from importlib.metadata import version
import img2dataset.downloader as d
print(json.dumps([
    version("img2dataset"),
    str(inspect.signature(d.download_image)),
    list(d.download_image_with_retry.__code__.co_names),
    list(inspect.signature(d.Downloader.__init__).parameters),
]))
"""


def test_the_function_that_is_replaced_is_the_one_we_know():
    out = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, check=True, text=True)
    found, signature, called, parameters = json.loads(out.stdout.splitlines()[-1])
    assert found == adapter.IMG2DATASET_VERSION == "1.47.0"
    assert signature == "(row, timeout, user_agent_token, disallowed_header_directives)"
    assert "download_image" in called
    ours = inspect.signature(adapter._safe_download_image)
    assert tuple(ours.parameters) == adapter._SIGNATURE
    assert "user_agent_token" in parameters


def test_img2dataset_calls_our_function_and_its_own_is_gone(hostile, settings):
    (done,) = download_links(links_to("/good.png?size=2"), settings)
    assert done.fetched.outcome is Outcome.KEPT
    text = next(t for path, t in reversed(hostile.requests) if path == "/good.png?size=2")
    assert "User-Agent: racm3-pipeline/" in text
    downloader = adapter._import_downloader()
    assert downloader.download_image is adapter._safe_download_image
    key, stream, error = downloader.download_image((3, "file:///etc/passwd"), 1, None, None)
    assert (key, stream, error) == (3, None, "the shard was given up")


@pytest.mark.parametrize("change", ["version", "signature"])
def test_another_img2dataset_is_refused(monkeypatch, settings, change):
    if change == "version":
        monkeypatch.setattr(adapter, "version", lambda name: "1.48.0")
        fake = adapter._safe_download_image.__class__(  # same signature, another function
            adapter._safe_download_image.__code__, adapter._safe_download_image.__globals__
        )
    else:

        def fake(row, timeout, user_agent_token, disallowed_header_directives, more):
            raise AssertionError("is never called")

    monkeypatch.setattr(adapter._import_downloader(), "download_image", fake)
    with pytest.raises(PipelineError, match="install"):
        download_links(links_to("/good.png"), settings)


def test_hostile_links_end_each_in_a_row(settings):
    paths = ("/good.png", "/404", "/html", "/hang", "/truncated", "/noai", "/to-meta", "/bomb.png")
    links = [*links_to(*paths), Link(row_id="9999", url="file:///etc/passwd")]
    done = download_links(links[::-1], settings)
    assert [(d.row_id, d.url) for d in done] == [(link.row_id, link.url) for link in links]
    assert [d.fetched.outcome.value for d in done] == [
        "kept", "http_error", "kept", "timeout", "truncated", "opted_out", "redirect_refused",
        "kept", "refused_scheme",
    ]  # fmt: skip
    for one in done:
        assert one.fetched_at is not None
        body = one.fetched.body
        if one.fetched.outcome is Outcome.KEPT:
            assert one.sha256 == hashlib.sha256(body).hexdigest()
            assert one.md5 == hashlib.md5(body).hexdigest()
        else:
            assert (body, one.sha256, one.md5) == (None, None, None)
    assert done[2].fetched.body == b"<html>no image</html>"  # judged where it is decoded


@pytest.mark.parametrize("count", [1, 10, 101])
def test_any_number_of_links_comes_back_in_order(settings, count):
    links = [Link(row_id=f"{(7919 * i) % 100_003:06d}", url=f"http://x/{i}") for i in range(count)]
    done = download_links(
        links, settings, fetcher=lambda url, _: Fetched(outcome=Outcome.KEPT, body=url.encode())
    )
    assert [d.row_id for d in done] == sorted(link.row_id for link in links)
    assert {d.row_id: d.fetched.body.decode() for d in done} == {x.row_id: x.url for x in links}
    assert download_links([], settings) == []


def test_five_hundred_images_arrive_byte_for_byte(hostile, settings):
    done = download_links(links_to(*(f"/set/{i}" for i in range(500))), settings)
    assert {d.fetched.outcome for d in done} == {Outcome.KEPT}
    assert len({d.sha256 for d in done}) == 500


def test_a_row_that_the_writer_loses_is_not_lost(settings, monkeypatch):
    from img2dataset.writer import ParquetSampleWriter

    write = ParquetSampleWriter.write

    def forgetful(self, img, key, caption, meta):
        if meta["row_id"] == "0001":
            raise OSError("no room")
        write(self, img, key, caption, meta)

    monkeypatch.setattr(ParquetSampleWriter, "write", forgetful)
    done = download_links(links_to("/good.png", "/good.png", "/404"), settings)
    outcomes = [d.fetched.outcome.value for d in done]
    assert outcomes == ["kept", "lost_by_downloader", "http_error"]
    assert done[1].fetched.body is None


def test_altered_bytes_are_a_defect(settings, monkeypatch):
    from img2dataset.writer import ParquetSampleWriter

    write = ParquetSampleWriter.write
    monkeypatch.setattr(
        ParquetSampleWriter,
        "write",
        lambda self, img, key, caption, meta: write(self, img + b"!", key, caption, meta),
    )
    with pytest.raises(PipelineError, match="other bytes"):
        download_links(links_to("/good.png"), settings)


def test_a_shard_that_does_not_end_is_given_up(settings, monkeypatch):
    monkeypatch.setattr(adapter, "_SLACK_SECONDS", -4.0)
    release = threading.Event()

    def stuck(url, _):
        release.wait(5)
        return Fetched(outcome=Outcome.TIMEOUT)

    with pytest.raises(PipelineError, match="did not end"):
        download_links(links_to("/a"), settings, fetcher=stuck)
    release.set()
    assert not adapter._CALLS


def test_a_folder_that_cannot_be_removed_yet_hides_no_error(settings, monkeypatch, tmp_path):
    """The shard that is given up goes on writing: the folder is not empty when it is removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def not_empty(*_, **__):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    def given_up(call, staging):
        (staging / "output").mkdir()
        monkeypatch.setattr(os, "rmdir", not_empty)
        raise PipelineError("img2dataset did not end a shard")

    monkeypatch.setattr(adapter, "_run_downloader", given_up)
    with pytest.raises(PipelineError, match="did not end"):
        download_links(links_to("/a"), settings)
    monkeypatch.undo()


def test_a_failure_of_img2dataset_is_one_sentence(settings, monkeypatch):
    from img2dataset.writer import ParquetSampleWriter

    def close(self):
        raise OSError("disk full")

    monkeypatch.setattr(ParquetSampleWriter, "close", close)
    with pytest.raises(PipelineError, match="disk full"):
        download_links(links_to("/good.png"), settings)
