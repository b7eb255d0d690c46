"""A loopback web server for a folder of images, alive as long as a `with` block.

It lets the demo and the tests download over real HTTP where there is no network. It listens on
127.0.0.1 only, on a port that the system chooses; URLs carry a fixed host name instead, which the
fetcher maps to that port (a port in a URL would change every digest from run to run).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

_LOG = logging.getLogger(__name__)
_CONTENT_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
_IDLE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHost:
    """Where a running server listens."""

    address: str
    """Always 127.0.0.1."""
    port: int
    """TCP port chosen by the system."""

    @property
    def netloc(self) -> str:
        """`127.0.0.1:port`, what a host name is mapped to."""
        return f"{self.address}:{self.port}"


@contextmanager
def serve_images(folder: Path) -> Iterator[ImageHost]:
    """Serve the image files below a folder until the block ends, by GET and HEAD.

    `http://<host>/twemoji/1f600.png` is `<folder>/twemoji/1f600.png`, whatever the host. Anything
    else (no such file, no image, a path that leaves the folder) is 404. Requests are answered by
    daemon threads: nothing outlives the process.

    Args:
        folder: what is served.

    Yields:
        Address and port.

    Raises:
        ValueError: when the folder does not exist.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise ValueError(f"The image host cannot serve '{folder}': there is no such folder.")
    server = _Server(("127.0.0.1", 0), partial(_Handler, root))
    thread = Thread(target=server.serve_forever, args=(0.05,), name="image-host", daemon=True)
    thread.start()
    try:
        yield ImageHost(address="127.0.0.1", port=server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that keeps its connection must not hold the flow up
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is worth a line in the log, not a traceback."""
        _LOG.debug("image host: %s hung up", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "racm3-image-host"
    timeout = _IDLE_SECONDS

    def __init__(self, root: Path, *args: object) -> None:
        self._root = root
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer with the file."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with the headers alone."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited name
        """Requests go to the log at debug level, never to the terminal."""
        _LOG.debug("image host: " + format, *args)

    def _answer(self, *, with_body: bool) -> None:
        body = self._read()
        kind = _CONTENT_TYPES.get(Path(urlsplit(self.path).path).suffix.lower(), "text/plain")
        if body is None:
            status, kind, body = HTTPStatus.NOT_FOUND, "text/plain", b"not found\n"
        else:
            status = HTTPStatus.OK
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _read(self) -> bytes | None:
        """The bytes asked for; None when there is no such image below the folder."""
        relative = unquote(urlsplit(self.path).path).lstrip("/")
        if "\0" in relative or Path(relative).suffix.lower() not in _CONTENT_TYPES:
            return None
        path = (self._root / relative).resolve()
        if not path.is_relative_to(self._root) or not path.is_file():
            return None
        return path.read_bytes()
