"""HTTPS: the certificate must be that of the name in the link, and the deadline holds here too."""

from __future__ import annotations

import contextlib
import datetime
import socketserver
import ssl
import threading
import time
from dataclasses import replace

import pytest

from pipelines.fetch.client import fetch
from pipelines.fetch.outcomes import Outcome

x509 = pytest.importorskip("cryptography.x509")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Key and self-signed certificate of `secure.test`, in one file."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "secure.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("secure.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def secure(certificate, settings, good_png):
    """Settings that know `secure.test` and `other.test`, both served with the one certificate."""
    stop = threading.Event()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def answer(sock, path):
        if path == "/drip":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
            while not stop.wait(0.05):
                sock.sendall(b"x")
        elif path == "/down":
            sock.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://hostile.test/good.png\r\n\r\n")
        else:
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(good_png)}\r\n\r\n".encode()
            sock.sendall(head + good_png)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.settimeout(5)
            with contextlib.suppress(OSError):  # a client that hangs up is what some tests want
                sock = context.wrap_socket(self.request, server_side=True)
                answer(sock, sock.recv(65_536).decode().split(" ")[1])
                sock.close()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        here = f"127.0.0.1:{server.server_address[1]}"
        hosts = {**settings.host_map, "secure.test": here, "other.test": here}
        yield replace(settings, host_map=hosts)
        stop.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def trusted(certificate, monkeypatch):
    """The certificate is among those that the system trusts."""
    make = ssl.create_default_context
    monkeypatch.setattr(
        "pipelines.fetch.connect.ssl.create_default_context", lambda: make(cafile=certificate)
    )


@pytest.mark.usefixtures("trusted")
def test_a_certificate_of_the_name_passes(secure, good_png):
    fetched = fetch("https://secure.test/a.png", secure)
    assert (fetched.outcome, fetched.body) == (Outcome.KEPT, good_png), fetched.error


@pytest.mark.usefixtures("trusted")
def test_a_certificate_of_another_name_does_not(secure):
    fetched = fetch("https://other.test/a.png", secure)
    assert fetched.outcome is Outcome.CONNECT_FAILED
    assert "other.test" in fetched.error


def test_a_certificate_that_nobody_signed_does_not(secure):
    assert fetch("https://secure.test/a.png", secure).outcome is Outcome.CONNECT_FAILED


@pytest.mark.usefixtures("trusted")
def test_the_deadline_holds_under_tls(secure):
    started = time.monotonic()
    assert fetch("https://secure.test/drip", secure).outcome is Outcome.TIMEOUT
    assert time.monotonic() - started < 4 * secure.deadline  # the server alone would take 45 s


@pytest.mark.usefixtures("trusted")
def test_no_redirect_leads_from_https_to_http(secure):
    fetched = fetch("https://secure.test/down", secure)
    assert fetched.outcome is Outcome.REDIRECT_REFUSED
    assert "from https to http" in fetched.error
