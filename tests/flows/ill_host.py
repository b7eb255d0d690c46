"""A web host of strangers on loopback: pictures, and everything that goes wrong with them."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

INSIDE = {
    "metadata": "http://169.254.169.254/latest/meta-data",
    "network": "http://192.168.0.1/picture.png",
    "file": "file:///etc/hostname",
}
"""Where redirects lead that must not be followed."""

# --- pictures ---------------------------------------------------------------------------------


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **({"quality": 90} if kind != "PNG" else {}))
    return sink.getvalue()


def drawn(index: int, height: int, width: int) -> np.ndarray:
    """A gradient, a bar and some noise: no two are alike."""
    rng = np.random.default_rng(index)
    ramp = np.linspace(0, 1, width)[None, :, None] * rng.integers(60, 200, 3)
    pixels = np.broadcast_to(ramp, (height, width, 3)) + rng.integers(0, 40, (height, width, 3))
    top = int(rng.integers(0, height // 2))
    pixels[top : top + height // 4] = rng.integers(0, 256, 3)
    return pixels.clip(0, 255).astype(np.uint8)


def picture(index: int) -> bytes:
    height, width = 64 + 16 * (index % 5), 64 + 24 * (index % 4)
    return encoded(drawn(index, height, width), ("PNG", "JPEG", "WEBP")[index % 3])


def huge() -> bytes:
    sink = io.BytesIO()
    Image.new("1", (16_000, 16_000)).save(sink, "PNG")
    return sink.getvalue()


# --- the server -------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """`/<kind>/<more>/<index>`; what is not well served says so in its kind."""

    protocol_version = "HTTP/1.1"
    closing = threading.Event()

    def do_GET(self) -> None:
        kind, *more = self.path.strip("/").split("/")
        answer: Callable[..., None] = getattr(self, f"give_{kind}")
        answer(*more)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def send(
        self, body: bytes, *, status: int = 200, length: int | None = None, **more: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in ({"Content-Type": "image/png"} | more).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def give_picture(self, index: str) -> None:
        self.send(picture(int(index)))

    give_copy = give_picture

    def give_again(self, index: str) -> None:
        """The same pixels in other bytes."""
        pixels = np.asarray(Image.open(io.BytesIO(picture(int(index)))).convert("RGB"))
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
        self.send(sink.getvalue())

    def give_moved(self, index: str) -> None:
        self.send(b"", status=302, Location=f"/picture/{index}")

    def give_tiny(self, index: str) -> None:
        self.send(encoded(drawn(int(index), 8, 8), "PNG"))

    def give_long(self, index: str) -> None:
        self.send(encoded(drawn(int(index), 20, 500), "PNG"))

    def give_status(self, status: str, _: str) -> None:
        self.send(b"no", status=int(status))

    def give_html(self, _: str) -> None:
        self.send(b"<!DOCTYPE html><title>Not here any more</title>")

    def give_cut(self, index: str) -> None:
        whole = picture(3 * int(index) + int(index) % 2)  # PNG and JPEG
        self.send(whole[: len(whole) // 2])

    def give_short(self, index: str) -> None:
        whole = picture(int(index))
        self.send(whole[: len(whole) // 2], length=len(whole))

    def give_empty(self, _: str) -> None:
        self.send(b"")

    def give_hang(self, _: str) -> None:
        self.closing.wait(60)
        self.close_connection = True

    def give_drip(self, _: str) -> None:
        self.send(b"\x89PNG", length=10_000)
        while not self.closing.wait(1):
            self.wfile.write(b"x")
            self.wfile.flush()

    def give_inside(self, where: str, _: str) -> None:
        self.send(b"", status=302, Location=INSIDE[where])

    def give_loop(self, index: str) -> None:
        self.send(b"", status=301, Location=f"/loop/{index}")

    def give_opted_out(self, index: str) -> None:
        self.send(picture(int(index)), X_Robots_Tag="noai")

    def give_reset(self, _: str) -> None:
        self.close_connection = True

    def give_huge(self, _: str) -> None:
        self.send(huge())


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A client that went away is what half of these links are for."""


@contextmanager
def serve() -> Iterator[str]:
    """Yields `127.0.0.1:port` while the server runs."""
    server = Server(("127.0.0.1", 0), Handler)
    Handler.closing.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        Handler.closing.set()
        server.shutdown()
        server.server_close()
