from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.sources.image_host import ImageHost, serve_images


def _ask(host: ImageHost, path: str, method: str = "GET") -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection(host.address, host.port, timeout=5)
    try:
        connection.request(method, path, headers={"Host": "emoji.invalid"})
        answer = connection.getresponse()
        body = answer.read()
        if method == "GET":
            assert answer.getheader("Content-Length") == str(len(body))
        return answer.status, answer.getheader("Content-Type"), body
    finally:
        connection.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "twemoji").mkdir(parents=True)
    (root / "twemoji" / "a b.png").write_bytes(b"picture")
    (root / "one.jpg").write_bytes(b"photo")
    (root / "documents.json").write_text("{}")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return root


def test_images_are_served_and_nothing_else(folder: Path) -> None:
    with serve_images(folder) as host:
        assert host.netloc == f"127.0.0.1:{host.port}"
        assert _ask(host, "/twemoji/a%20b.png?x=1") == (200, "image/png", b"picture")
        assert _ask(host, "/one.jpg") == (200, "image/jpeg", b"photo")
        assert _ask(host, "/one.jpg", "HEAD") == (200, "image/jpeg", b"")
        for path in ("/none.png", "/documents.json", "/", "/twemoji", "/%00.png"):
            assert _ask(host, path)[0] == 404
        for path in ("/../secret.png", "/%2e%2e/secret.png", "//..%2fsecret.png"):
            assert _ask(host, path)[0] == 404


def test_links_out_of_the_folder_are_not_followed(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    with serve_images(folder) as host:
        assert _ask(host, "/link.png")[0] == 404


def test_many_clients_at_once(folder: Path) -> None:
    with serve_images(folder) as host, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: _ask(host, "/one.jpg"), range(100)))
    assert answers == [(200, "image/jpeg", b"photo")] * 100


def test_the_host_ends_with_the_block_even_under_an_open_connection(folder: Path) -> None:
    with serve_images(folder) as host:
        kept = http.client.HTTPConnection(host.address, host.port, timeout=5)
        kept.request("GET", "/one.jpg")
        kept.getresponse().read()
    kept.close()
    with pytest.raises(ConnectionRefusedError):
        _ask(host, "/one.jpg")


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"), serve_images(tmp_path / "none"):
        pass
