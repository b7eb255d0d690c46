"""One link against a hostile server."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace

import pytest

from pipelines.fetch.client import fetch, user_agent
from pipelines.fetch.outcomes import Outcome

ENDS = {
    "/good.png": "kept",
    "/html": "kept",
    "/half.png": "kept",
    "/bomb.png": "kept",
    "/other": "kept",
    "/gzip": "kept",
    "/hop": "kept",
    "/404": "http_error",
    "/204": "http_error",
    "/206": "http_error",
    "/nowhere": "http_error",
    "/truncated": "truncated",
    "/chunk-torn": "truncated",
    "/empty": "empty",
    "/huge": "too_large",
    "/endless": "too_large",
    "/gzip-bomb": "too_large",
    "/br": "network_error",
    "/garbage": "network_error",
    "/reset": "network_error",
    "/many-headers": "network_error",
    "/noai": "opted_out",
    "/hops": "too_many_redirects",
    "/to-meta": "redirect_refused",
    "/to-file": "redirect_refused",
    "/to-port": "redirect_refused",
    "/hang": "timeout",
    "/drip-header": "timeout",
    "/drip-body": "timeout",
}


@pytest.mark.parametrize(("path", "outcome"), ENDS.items())
def test_every_answer_ends_in_its_outcome(hostile, settings, path, outcome):
    started = time.monotonic()
    fetched = fetch(f"http://hostile.test{path}", settings)
    assert fetched.outcome == outcome, fetched.error
    assert (fetched.body is not None) == (outcome == "kept")
    assert (fetched.error is None) == (outcome == "kept")
    assert time.monotonic() - started < 4 * settings.deadline  # it would hang for 5 s and more


def test_a_good_answer_is_recorded_whole(hostile, settings, good_png):
    fetched = fetch("http://hostile.test/hop", settings)
    assert fetched.body == good_png
    assert fetched.final_url == "http://hostile.test/good.png"
    assert fetched.redirects == ("http://hostile.test/hop",)
    assert (fetched.status, fetched.consent) == (200, "no_signal")
    assert f"content-length: {len(good_png)}" in fetched.headers


def test_we_say_who_we_are_and_send_nothing_else(hostile, settings, monkeypatch, tmp_path):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (tmp_path / ".netrc").write_text("machine hostile.test login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("http://hostile.test/good.png?size=2", settings).outcome is Outcome.KEPT
    text = next(t for path, t in hostile.requests if path == "/good.png?size=2")
    names = {line.split(":")[0].lower() for line in text.split("\r\n")[1:] if line}
    assert names == {"host", "user-agent", "accept", "accept-encoding", "connection"}
    assert f"User-Agent: {user_agent(settings)}" in text
    assert "Host: hostile.test\r\n" in text
    assert "Accept-Encoding: identity" in text
    assert settings.contact in user_agent(settings)


def test_opting_out_is_recorded_where_it_is_not_honoured(settings):
    fetched = fetch("http://hostile.test/noai", replace(settings, honor_opt_out=False))
    assert (fetched.outcome, fetched.consent) == (Outcome.KEPT, "x-robots-tag: noai")


def test_a_refused_redirect_keeps_what_is_known(settings):
    fetched = fetch("http://hostile.test/to-meta", settings)
    assert fetched.redirects == ("http://hostile.test/to-meta",)
    assert fetched.status == 302
    assert "169.254.169.254" in str(fetched.error)


@pytest.fixture
def canary():
    """A listener that no request may reach."""
    touched = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        try:
            listener.accept()
            touched.set()
        except OSError:
            pass

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1], touched
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(2)


def test_a_name_is_looked_up_once_and_connected_to_what_was_checked(settings, canary, monkeypatch):
    port, touched = canary
    asked, dialled = [], []
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])

    def resolver(host, port):
        asked.append(host)
        return next(answers)

    def dial(address, timeout):
        dialled.append(address)
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr("pipelines.fetch.connect.socket.create_connection", dial)
    fetched = fetch("http://rebinding.test/", settings, resolver=resolver)
    assert fetched.outcome is Outcome.CONNECT_FAILED
    assert (asked, dialled) == (["rebinding.test"], [("8.8.8.8", 80)])
    fetched = fetch("http://rebinding.test/", settings, resolver=resolver)
    assert fetched.outcome is Outcome.REFUSED_ADDRESS
    assert len(dialled) == 1
    for url in (f"http://127.0.0.1:{port}/", f"http://localhost:{port}/"):
        assert fetch(url, settings).outcome is Outcome.REFUSED_PORT
    assert not touched.is_set()


def test_names_that_do_not_resolve_or_never_answer(settings):
    def fails(host, port):
        raise socket.gaierror(-2, "unknown")

    release = threading.Event()

    def hangs(host, port):
        release.wait(5)
        return ["8.8.8.8"]

    assert fetch("http://a.test/", settings, resolver=fails).outcome is Outcome.DNS_FAILED
    assert fetch("http://a.test/", settings, resolver=lambda h, p: []).outcome is Outcome.DNS_FAILED
    slow = replace(settings, connect_timeout=0.1)
    assert fetch("http://a.test/", slow, resolver=hangs).outcome is Outcome.DNS_FAILED
    release.set()


def test_only_what_may_pass_is_tried_again(hostile, settings):
    again = replace(settings, retries=2)
    for path, tries in (("/truncated", 3), ("/404", 1), ("/noai", 1)):
        before = sum(1 for asked, _ in hostile.requests if asked == path)
        fetch(f"http://hostile.test{path}", again)
        assert sum(1 for asked, _ in hostile.requests if asked == path) - before == tries


def test_nobody_there(settings):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    nobody = replace(settings, allow=(f"127.0.0.1:{port}",))
    assert fetch(f"http://127.0.0.1:{port}/", nobody).outcome is Outcome.CONNECT_FAILED


def test_plain_http_behind_an_https_link_is_a_failed_connection(settings):
    assert fetch("https://hostile.test/good.png", settings).outcome in (
        Outcome.CONNECT_FAILED,
        Outcome.TIMEOUT,
    )
