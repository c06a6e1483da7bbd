"""Servers and clients that misbehave: each fault is a typed error that says who must act, and nothing is kept."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from support.myproxy_server import ServerProcess, start_ours
from support.pki import Pki, pki

from airpanda.core.clock import utcnow
from airpanda.core.errors import AirpandaError, CredentialError, RequestError, ServiceError
from airpanda.core.secret import Secret
from airpanda.myproxy import errors, tls
from airpanda.myproxy.client import MyProxyClient
from airpanda.myproxy.staging import stage
from airpanda.myproxy.wire import encode_chain
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import make_request, new_key, sign_request

__all__ = ["pki"]
pytestmark = pytest.mark.integration
HOUR = timedelta(hours=1)
OK = b"VERSION=MYPROXYv2\nRESPONSE=0\n\0"
PASSPHRASE = Secret("correct horse")
Script = Callable[[ssl.SSLSocket], None]


@contextmanager
def _fake(pki: Pki, script: Script) -> Iterator[int]:
    """A server that serves connections by a script, until the test is over."""
    context = tls.server_context(pki.ca_dir, ProxyCredential.from_files(*pki.host()))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                raw, _ = listener.accept()
                raw.settimeout(60)
                with context.wrap_socket(raw, server_side=True) as connection:
                    script(connection)
            except OSError:
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        over.set()
        thread.join(60)
        listener.close()


def _request(connection: ssl.SSLSocket) -> bytes:
    data = b""
    while b"\0" not in data:
        data += connection.recv(65536)
    return data


def _answer(*messages: bytes) -> Script:
    def script(connection: ssl.SSLSocket) -> None:
        _request(connection)
        for message in messages:
            connection.sendall(message)
        connection.unwrap()

    return script


def _sign_with(pki: Pki, user: str, other_key: bool) -> Script:
    def script(connection: ssl.SSLSocket) -> None:
        rest = _request(connection).partition(b"\0")[2]
        asked = rest or connection.recv(65536)
        csr = make_request(new_key()) if other_key else asked
        issuer = ProxyCredential.from_files(*pki.user(user))
        chain = sign_request(issuer, csr, lifetime=HOUR, now=utcnow())
        for message in (OK, encode_chain(chain), OK):
            connection.sendall(message)

    return script


def _slow(connection: ssl.SSLSocket) -> None:
    _request(connection)
    for _ in range(100):
        connection.sendall(b"V")
        time.sleep(0.1)


def _huge(connection: ssl.SSLSocket) -> None:
    _request(connection)
    for _ in range(160):
        connection.sendall(b"x" * 65536)


def _client(pki: Pki, port: int, user: str = "pilot", timeout: timedelta = timedelta(seconds=60)) -> MyProxyClient:
    credential = ProxyCredential.from_files(*pki.user(user))
    return MyProxyClient("localhost", port, ca_dir=pki.ca_dir, credential=credential, timeout=timeout)


BAD = [
    (_answer(), errors.UnreachableError),
    (_answer(b"VERSION=MYPROXYv2\nRESP"), errors.UnreachableError),
    (_answer(OK), errors.UnreachableError),
    (_answer(OK, b"\x03\x30\x82"), errors.UnreachableError),
    (_answer(b"HTTP/1.1 400 Bad Request\r\n\0"), errors.ProtocolViolationError),
    (_answer(bytes(range(1, 256)) + b"\0"), errors.ProtocolViolationError),
    (_answer(b"VERSION=MYPROXYv2\nRESPONSE=7\n\0"), errors.ProtocolViolationError),
    (_answer(b"VERSION=MYPROXYv2\n\0"), errors.ProtocolViolationError),
    (_answer(OK, b"\xff"), errors.ProtocolViolationError),
    (_answer(OK, b"\x00"), errors.ProtocolViolationError),
    (_answer(OK, b"\x01garbage"), errors.ProtocolViolationError),
    (_answer(OK, b"\x01\x30\x83\xff\xff\xff"), errors.ProtocolViolationError),
    (_answer(OK, b"\x01\x30\x00", OK), errors.UnfitCredentialError),
    (_answer(OK, OK), errors.ProtocolViolationError),
    (_answer(b"VERSION=MYPROXYv2\nRESPONSE=1\nERROR=a\x1b[31mb\n\0"), errors.MyProxyRefusedError),
    (_huge, errors.ProtocolViolationError),
]


@pytest.mark.parametrize(("script", "kind"), BAD)
def test_servers_that_do_not_speak_the_protocol(pki: Pki, script: Script, kind: type[AirpandaError]) -> None:
    with _fake(pki, script) as port, pytest.raises(kind) as caught:
        _client(pki, port).get("alice", PASSPHRASE, lifetime=HOUR)
    assert str(caught.value).isprintable()
    assert PASSPHRASE.reveal() not in str(caught.value)
    if isinstance(caught.value, ServiceError):
        assert caught.value.transient == (kind is errors.UnreachableError)


@pytest.mark.parametrize("command", ["info", "destroy", "put", "store", "retrieve", "trustroots", "change"])
@pytest.mark.parametrize("messages", [(), (b"\x30garbage\0",), (b"VERSION=MYPROXYv2\nRESPONSE=0",)])
def test_every_command_survives_them(pki: Pki, command: str, messages: tuple[bytes, ...]) -> None:
    with _fake(pki, _answer(*messages)) as port:
        client = _client(pki, port)
        assert client.credential is not None
        source = client.credential
        calls: dict[str, Callable[[], object]] = {
            "info": lambda: client.info("alice"),
            "destroy": lambda: client.destroy("alice"),
            "put": lambda: client.put("alice", PASSPHRASE, lifetime=HOUR),
            "store": lambda: client.store("alice", source, PASSPHRASE, retrieval_lifetime=HOUR),
            "retrieve": lambda: client.retrieve("alice", PASSPHRASE),
            "trustroots": client.trustroots,
            "change": lambda: client.change_passphrase("alice", PASSPHRASE, Secret("battery staple")),
        }
        with pytest.raises(errors.MyProxyServiceError):
            calls[command]()


def test_a_slow_server_has_one_deadline_for_all(pki: Pki) -> None:
    with _fake(pki, _slow) as port, pytest.raises(errors.UnreachableError, match="did not answer within"):
        _client(pki, port, timeout=timedelta(seconds=2)).get("alice", PASSPHRASE, lifetime=HOUR)


def test_a_server_that_is_down(pki: Pki) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = int(closed.getsockname()[1])
    with pytest.raises(errors.UnreachableError, match="cannot be reached"):
        _client(pki, port).info("alice")


def test_a_certificate_for_another_key(pki: Pki) -> None:
    with (
        _fake(pki, _sign_with(pki, "alice", other_key=True)) as port,
        pytest.raises(errors.UnfitCredentialError, match="no proxy for our key"),
    ):
        _client(pki, port).get("alice", PASSPHRASE, lifetime=HOUR)


def test_a_certificate_of_another_person(pki: Pki) -> None:
    with (
        _fake(pki, _sign_with(pki, "bob", other_key=False)) as port,
        pytest.raises(errors.UnfitCredentialError, match="Bob Example's, not"),
    ):
        _client(pki, port).get("alice", PASSPHRASE, lifetime=HOUR, owner_dn=pki.dn("alice"))


def test_a_certificate_of_another_ca(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = Pki(tmp_path_factory.mktemp("other") / "pki")
    with (
        _fake(pki, _sign_with(other, "alice", other_key=False)) as port,
        pytest.raises(errors.UnfitCredentialError, match="signature is not by the trusted CA"),
    ):
        _client(pki, port).get("alice", PASSPHRASE, lifetime=HOUR, owner_dn=pki.dn("alice"))


def test_a_challenge_is_not_answered_with_a_guess(pki: Pki) -> None:
    challenge = b"VERSION=MYPROXYv2\nRESPONSE=2\nAUTHORIZATION_DATA=X509_certificate:00\n\0"
    with _fake(pki, _answer(challenge)) as port:
        with pytest.raises(CredentialError, match="old proxy is needed"):
            _client(pki, port).get("alice", lifetime=HOUR)
        old = ProxyCredential.from_files(*pki.user("alice"))
        with pytest.raises(errors.ProtocolViolationError, match="SHA-256"):
            _client(pki, port).get("alice", lifetime=HOUR, renew=old)


def test_nothing_is_left_when_the_connection_breaks_after_store(pki: Pki) -> None:
    """The server has stored, but nobody hears of it: a DESTROY follows, and the first error is told."""
    seen: list[bytes] = []

    def script(connection: ssl.SSLSocket) -> None:
        request = _request(connection)
        seen.append(request)
        connection.sendall(OK)
        if b"COMMAND=5" in request:
            _request(connection)  # stored; no answer

    with _fake(pki, script) as port:
        client = _client(pki, port, user="alice")
        assert client.credential is not None
        with pytest.raises(errors.UnreachableError):
            stage(client, client.credential, retriever_dn=pki.dn("pilot"), lifetime=HOUR)
    store, destroy = seen
    name = next(line for line in store.split(b"\n") if line.startswith(b"CRED_NAME="))
    assert b"COMMAND=3" in destroy
    assert name in destroy.split(b"\n")


@pytest.fixture(scope="module")
def ours(pki: Pki) -> Iterator[ServerProcess]:
    with start_ours(pki, "accepted_credentials '*'\nauthorized_retrievers '*'\nrequest_timeout 5\n") as running:
        yield running


GET = b"0VERSION=MYPROXYv2\nCOMMAND=0\nUSERNAME=a\nPASSPHRASE=secret1\nLIFETIME=0\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0",
        b"D",
        b"\x00" * 10,
        b"GET / HTTP/1.1\r\n\r\n",
        b"0\0",
        GET.replace(b"v2", b"v1") + b"\0",
        GET.replace(b"COMMAND=0", b"COMMAND=9") + b"\0",
        GET.replace(b"COMMAND=0", b"COMMAND=-1") + b"\0",
        GET + b"USERNAME=b\n\0",
        GET.replace(b"=a\n", b"=a CRED_NAME=b\n") + b"\0",
        GET.replace(b"=0\nUSER", b"=5\nUSER") + b"RETRIEVER=(((\n\0",
        b"0" + b"x" * 100_000,
        GET + b"\0" + b"\x30\x80",
    ],
)
def test_clients_that_do_not_speak_the_protocol(pki: Pki, ours: ServerProcess, data: bytes) -> None:
    context = tls.client_context(pki.ca_dir, None, check_hostname=True)
    raw = socket.create_connection(("127.0.0.1", ours.port), timeout=60)
    connection = context.wrap_socket(raw, server_hostname="localhost")
    answer = b""
    with connection, contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.sendall(data)
        while part := connection.recv(65536):
            answer += part
    assert b"RESPONSE=0" not in answer
    assert ours.client("alice").info("nobody") == ()


def test_half_a_hundred_idle_connections_end_by_themselves(pki: Pki, ours: ServerProcess) -> None:
    idle = [socket.create_connection(("127.0.0.1", ours.port), timeout=60) for _ in range(50)]
    try:
        assert ours.client("alice", timeout=timedelta(seconds=60)).info("nobody") == ()
    finally:
        for connection in idle:
            connection.close()


def test_a_revoked_client_is_refused_by_our_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    own = Pki(tmp_path_factory.mktemp("own") / "pki")
    own.write_crl("bob")
    with start_ours(own) as running:
        assert running.client("alice").info("x") == ()
        with pytest.raises(errors.MyProxyRefusedError, match="revoked"):
            running.client("bob").put("bob", PASSPHRASE, lifetime=HOUR)


def test_a_revoked_server_is_refused_by_our_client(tmp_path_factory: pytest.TempPathFactory) -> None:
    own = Pki(tmp_path_factory.mktemp("own") / "pki")
    with start_ours(own) as running:
        own.write_crl_for(own.host().cert)
        with pytest.raises(errors.UntrustedServerError, match="revoked"):
            running.client("alice").info("x")


def test_lifetimes_that_mean_forever_are_refused(pki: Pki, ours: ServerProcess) -> None:
    with pytest.raises(RequestError, match="at least one second"):
        ours.client("pilot").get("alice", PASSPHRASE, lifetime=timedelta(0))
