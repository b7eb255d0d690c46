"""A hostile web server on loopback; every connection of it ends by itself."""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
import socketserver
import struct
import threading
import zlib

import pytest
from PIL import Image

from pipelines.fetch.policy import FetchSettings


def png(size=(8, 8), color=(200, 30, 40)):
    sink = io.BytesIO()
    Image.new("RGB", size, color).save(sink, "PNG")
    return sink.getvalue()


def png_header(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def answer(body=b"", status="200 OK", length=None, **headers):
    lines = [f"HTTP/1.1 {status}"]
    if length != "":
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Hostile:
    """Counts what it was asked; `stop` ends every hanging answer."""

    def __init__(self):
        self.requests = []
        self.stop = threading.Event()
        self.port = 0
        self.answers = {
            "/good.png": answer(png()),
            "/good.png?size=2": answer(png((2, 2))),
            "/404": answer(b"gone", "404 Not Found"),
            "/206": answer(b"part", "206 Partial Content"),
            "/204": answer(b"", "204 No Content"),
            "/html": answer(b"<html>no image</html>", Content_Type="text/html"),
            "/truncated": answer(png()[:40], length=4000),
            "/half.png": answer(png((64, 64))[:100]),
            "/bomb.png": answer(png_header(16_000, 16_000)),
            "/empty": answer(b""),
            "/huge": answer(b"", length=10**10),
            "/noai": answer(png(), X_Robots_Tag="noai"),
            "/other": answer(png(), X_Robots_Tag="otherbot: noai"),
            "/gzip": answer(gzip.compress(png()), Content_Encoding="gzip"),
            "/gzip-bomb": answer(gzip.compress(bytes(10**7)), Content_Encoding="gzip"),
            "/br": answer(b"x", Content_Encoding="br"),
            "/garbage": b"\x00\x01\x02 this is no HTTP\r\n\r\n",
            "/chunk-torn": answer(b"5\r\nab", length="", Transfer_Encoding="chunked"),
            "/hop": self._redirect("/good.png"),
            "/hops": self._redirect("/hops"),
            "/to-meta": self._redirect("http://169.254.169.254/latest/"),
            "/to-file": self._redirect("file:///etc/passwd"),
            "/to-port": self._redirect("http://127.0.0.1:1/"),
            "/nowhere": answer(b"", "302 Found"),
            "/many-headers": answer(png(), **{f"X{n}": "y" for n in range(2000)}),
        }
        self.behaviours = {
            "/hang": self._hang,
            "/drip-header": lambda sock: self._drip(sock, b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 900),
            "/drip-body": lambda sock: self._drip(sock, b"x" * 900, answer(b"", length=900)),
            "/endless": self._endless,
            "/reset": self._reset,
        }

    def _redirect(self, location):
        return answer(b"", "302 Found", Location=location)

    def _hang(self, sock):
        self.stop.wait(5)

    def _drip(self, sock, body, first=b""):
        sock.sendall(first)
        for byte in body:
            if self.stop.wait(0.05):
                return
            sock.sendall(bytes([byte]))

    def _endless(self, sock):
        sock.sendall(answer(b"", length=""))
        for _ in range(2000):
            sock.sendall(bytes(65_536))

    def _reset(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def handle(self, sock):
        sock.settimeout(5)
        text = sock.recv(65_536).decode("latin-1")
        path = text.split(" ")[1] if " " in text else ""
        self.requests.append((path, text))
        if path in self.behaviours:
            self.behaviours[path](sock)
        elif path.startswith("/set/"):
            sock.sendall(answer(png(color=(int(path[5:]) % 256, int(path[5:]) // 256, 7))))
        else:
            sock.sendall(self.answers.get(path, answer(b"?", "404 Not Found")))


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request, client_address):
        pass


@pytest.fixture(scope="session")
def hostile():
    host = Hostile()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):  # the client hung up: that is what is tested
                host.handle(self.request)

    server = _Server(("127.0.0.1", 0), Handler)
    host.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield host
    host.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def settings(hostile):
    return FetchSettings(
        host_map={"hostile.test": f"127.0.0.1:{hostile.port}"},
        deadline=1.5,
        read_timeout=1.0,
        max_bytes=200_000,
        retries=0,
    )


@pytest.fixture
def good_png():
    return png()
