"""The pilot's connection: whom it trusts, what it shows, how much it takes, when it tries again."""

from __future__ import annotations

import http.server
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.fake_dispatcher import make_job
from support.pki import Pki, pki  # noqa: F401  # a fixture

from airpanda.core.errors import ConflictError, NotAuthorisedError, RequestError, ServiceError, StaleReportError
from airpanda.core.secret import Secret
from airpanda.pilot import client as client_module
from airpanda.pilot import wire
from airpanda.pilot.client import DispatcherClient
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]
TOKEN = "canary-token-917"


def say(status: int, body: bytes = b"{}", **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def server(answers: list[Answer], context: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[Any]]]:
    """A server that gives these answers in turn, the last for ever; with what it saw of each client."""
    seen: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            peer = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
            chain = None
            if isinstance(self.connection, ssl.SSLSocket):
                chain = len(self.connection._sslobj.get_unverified_chain() or [])  # type: ignore[attr-defined]
            seen.append((self.path, self.headers, peer, chain, self.client_address[1]))
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)

        do_GET = do_POST = do_PUT = _any

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that turns away is what some tests are about."""

    running = Quiet(("127.0.0.1", 0), Handler)
    if context is not None:
        running.socket = context.wrap_socket(running.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"{'https' if context else 'http'}://localhost:{running.server_port}/panda", seen
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


@contextmanager
def client_of(url: str, *, ca_dir: Path = Path("/"), proxy: Path | None = None) -> Iterator[DispatcherClient]:
    made = DispatcherClient(
        url,
        Secret(TOKEN),
        ca_dir=str(ca_dir),
        proxy=str(proxy) if proxy else None,
        stop=threading.Event(),
        timeout_s=30.0,
    )
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def job() -> wire.Job:
    import json

    from airpanda import messages as m

    text = m.AcquireReply(jobs=[make_job()], wait_s=0).model_dump_json()
    return wire.read_acquire_reply(json.loads(text)).jobs[0]


# --- TLS -----------------------------------------------------------------------------------------------------


@contextmanager
def tls_server(pki: Pki, *, cert: Any = None) -> Iterator[tuple[str, list[Any]]]:  # noqa: F811
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*(cert or pki.host()))
    context.load_verify_locations(capath=str(pki.ca_dir))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= 0x40  # type: ignore[operator]  # X509_V_FLAG_ALLOW_PROXY_CERTS
    with server([say(200, b'{"command": ""}')], context) as pair:
        yield pair


def proxy_file(pki: Pki, directory: Path) -> Path:  # noqa: F811
    eec = ProxyCredential.from_files(*pki.user("pilot"))
    create_proxy(eec, lifetime=timedelta(hours=1), now=datetime.now(UTC)).write(directory / "proxy")
    return directory / "proxy"


def test_the_proxy_is_presented_with_its_chain(pki: Pki, tmp_path: Path) -> None:  # noqa: F811
    with tls_server(pki) as (url, seen), client_of(url, ca_dir=pki.ca_dir, proxy=proxy_file(pki, tmp_path)) as client:
        assert client.worker_status({}) == ""
    (path, headers, _, chain, _) = seen[0]
    assert path == "/panda/v1/pilot/update_worker_status"
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert chain >= 2, "leaf proxy and its end-entity certificate"


def test_a_ca_that_is_not_the_sites_is_not_trusted(pki: Pki, tmp_path: Path) -> None:  # noqa: F811
    other = Pki(tmp_path / "other")
    with tls_server(pki) as (url, seen), client_of(url, ca_dir=other.ca_dir) as client:
        with pytest.raises(ServiceError, match="certificate is not accepted"):
            client.worker_status({})
        assert seen == []


def test_a_certificate_of_another_host_is_not_accepted(pki: Pki) -> None:  # noqa: F811
    with tls_server(pki, cert=pki.user("alice")) as (url, seen), client_of(url, ca_dir=pki.ca_dir) as client:
        with pytest.raises(ServiceError, match="certificate is not accepted"):
            client.worker_status({})
        assert seen == []


def test_the_environment_does_not_change_whom_it_trusts(
    pki: Pki,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Pki(tmp_path / "other")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(pki.ca.cert))
    monkeypatch.setenv("SSL_CERT_DIR", str(pki.ca_dir))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    refused = pytest.raises(ServiceError, match="certificate is not accepted")
    with tls_server(pki) as (url, _), client_of(url, ca_dir=other.ca_dir) as client, refused:
        client.worker_status({})


def test_a_proxy_that_cannot_be_used_is_named(pki: Pki, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "proxy").write_text("no proxy")
    with tls_server(pki) as (url, _), client_of(url, ca_dir=pki.ca_dir, proxy=tmp_path / "proxy") as client:
        with pytest.raises(ServiceError, match="cannot be presented") as caught:
            client.worker_status({})
        assert not caught.value.transient


# --- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (say(302, Location="http://127.0.0.1:9/"), ServiceError, "no redirects"),
        (say(307, Location="http://127.0.0.1:9/"), ServiceError, "no redirects"),
        (say(400, b'{"detail": "a reason"}'), RequestError, "a reason"),
        (say(401), NotAuthorisedError, "401"),
        (say(403), NotAuthorisedError, "403"),
        (say(409, b'{"code": "stale-report"}'), StaleReportError, "409"),
        (say(409, b'{"code": "conflict"}'), ConflictError, "409"),
        (say(500, b"<html>"), ServiceError, "no reason given"),
        (say(503), ServiceError, "503"),
        (say(200, b"no json"), ServiceError, "not JSON"),
        (say(200, b"[]"), ServiceError, "not understood"),
    ],
)
def test_refusals_are_typed(job: wire.Job, answer: Answer, kind: type[Exception], words: str) -> None:
    with server([answer]) as (url, seen), client_of(url) as client:
        with pytest.raises(kind, match=words) as caught:
            client.update(wire.Report(job, "running", "wn"))
        assert len(seen) == 1
        assert TOKEN not in repr(caught.value)


def test_an_answer_without_end_is_cut(job: wire.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_JSON_BYTES", 1000)
    with (
        server([say(200, b" " * 5000)]) as (url, _),
        client_of(url) as client,
        pytest.raises(ServiceError, match="long"),
    ):
        client.update(wire.Report(job, "running", "wn"))


def test_nobody_there_is_transient(job: wire.Job) -> None:
    with client_of("http://localhost:9") as client:
        with pytest.raises(ServiceError, match="cannot be reached") as caught:
            client.update(wire.Report(job, "running", "wn"))
        assert caught.value.transient


def test_it_waits_for_a_dispatcher_that_comes_back_and_no_longer_than_told(job: wire.Job) -> None:
    with server([say(503, Retry_After="1")]) as (url, seen), client_of(url) as client:
        begin = time.monotonic()
        with pytest.raises(ServiceError):
            client.worker_status({}, patience_s=4.0)
        assert len(seen) >= 2
        assert time.monotonic() - begin < 20
    with server([say(503), say(503), say(200)]) as (url, seen), client_of(url) as client:
        assert client.worker_status({}, patience_s=20) == ""
        assert len(seen) == 3


def test_a_connection_that_was_closed_meanwhile_is_made_again_at_once(job: wire.Job) -> None:
    def close_after(handler: http.server.BaseHTTPRequestHandler) -> None:
        say(200)(handler)
        handler.close_connection = True

    with server([close_after]) as (url, seen), client_of(url) as client:
        for _ in range(3):
            assert client.worker_status({}) == ""
        assert len({port for *_, port in seen}) == 3


def test_an_input_is_bounded_and_checked(job: wire.Job, tmp_path: Path) -> None:
    with server([say(200, b"12345", X_Airpanda_Sha256="0" * 64)]) as (url, _), client_of(url) as client:
        with pytest.raises(ServiceError, match="wrong checksum"):
            client.get_input(job, "a", tmp_path / "a", max_bytes=5, patience_s=0)
        with pytest.raises(RequestError, match="larger"):
            client.get_input(job, "a", tmp_path / "a", max_bytes=4, patience_s=0)


def test_an_input_that_breaks_off_is_not_whole(job: wire.Job, tmp_path: Path) -> None:
    def half(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"12345")
        handler.close_connection = True

    with server([half]) as (url, _), client_of(url) as client, pytest.raises(ServiceError, match="broke"):
        client.get_input(job, "a", tmp_path / "a", max_bytes=100, patience_s=0)


def test_a_report_whose_answer_breaks_off_is_transient(job: wire.Job) -> None:
    def half(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"{")
        handler.close_connection = True

    with server([half, say(200, b'{"command": ""}')]) as (url, seen), client_of(url) as client:
        assert client.worker_status({}, patience_s=10) == ""
        assert len(seen) == 2


def test_the_dispatchers_clock_counts_for_leases() -> None:
    ahead = (datetime.now(UTC) + timedelta(hours=3)).strftime("%a, %d %b %Y %H:%M:%S GMT")

    def shifted(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.date_time_string = lambda *_: ahead  # type: ignore[method-assign]
        say(200)(handler)

    with server([shifted]) as (url, _), client_of(url) as client:
        client.greet()
        assert abs(client.clock_offset_s - 3 * 3600) < 5
        left = client.seconds_until(datetime.now(UTC) + timedelta(hours=3, seconds=60))
        assert 50 < left < 70
