"""An HTTPS server on loopback that does what a test scripts: the storage that nobody wants to meet."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from support.pki import Pki


class Seen(NamedTuple):
    method: str
    path: str
    peer: str  # the subject of the certificate that the client showed, or empty
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """What a script gets: ``reply`` for whole answers, ``wfile`` and ``connection`` for everything else."""

    protocol_version = "HTTP/1.1"
    bad: BadStorage

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_expect_100(self) -> bool:
        return super().handle_expect_100() if self.bad.continues else True

    def _scripted(self) -> None:
        taken = self.command == "PUT" and self.bad.reads
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) if taken else b""
        certificate = self.connection.getpeercert()  # type: ignore[attr-defined]
        subject = [pair for part in certificate.get("subject", ()) for pair in part] if certificate else []
        peer = "".join(f"/{value}" for _, value in subject)
        self.bad.seen.append(Seen(self.command, self.path, peer, body))
        self.bad.script(self)

    do_GET = do_HEAD = do_PUT = do_OPTIONS = do_MOVE = do_PROPFIND = do_DELETE = _scripted

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: what a test wants to know is in ``seen``."""


@dataclass
class BadStorage:
    """``script`` answers every request. ``reads``: the body of a PUT is taken before; ``continues``: and asked for."""

    script: Callable[[Handler], None]
    port: int = 0
    reads: bool = True
    continues: bool = True
    seen: list[Seen] = field(default_factory=list)

    def url(self, name: str = "d/a", host: str = "localhost") -> str:
        return f"https://{host}:{self.port}/{name}"

    @property
    def methods(self) -> list[str]:
        return [each.method for each in self.seen]


@contextmanager
def bad_storage(pki: Pki, script: Callable[[Handler], None], *, ca_dir: Path | None = None) -> Iterator[BadStorage]:
    """It asks for a client's certificate, takes RFC 3820 proxies, and serves whoever shows one or none."""
    bad = BadStorage(script)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Scripted", (Handler,), {"bad": bad}))
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.host())
    context.load_verify_locations(capath=str(ca_dir or pki.ca_dir))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VerifyFlags.VERIFY_ALLOW_PROXY_CERTS
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that turn away are what is tested
    bad.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield bad
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
