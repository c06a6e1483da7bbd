"""The embedded development server: ``python -m airpanda.myproxy.server --config FILE --storage DIR …``.

For demonstrations and tests, where Debian's ``myproxy-server`` is not installed. It listens on the loopback
interface unless told otherwise, serves a bounded number of threads, and stops on SIGTERM after the requests
that are under way.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Optional, TypeVar

from airpanda.core.clock import utcnow
from airpanda.core.errors import AirpandaError, ConfigurationError, RequestError
from airpanda.myproxy import messages, protocol, tls
from airpanda.myproxy.config import ServerPolicies
from airpanda.myproxy.errors import MyProxyServiceError, ProtocolViolationError
from airpanda.myproxy.keys import KeyPool
from airpanda.myproxy.protocol import ServerProtocol
from airpanda.myproxy.service import Denied, Peer, Service
from airpanda.myproxy.store import CredentialStore
from airpanda.myproxy.values import Command, Request
from airpanda.x509.chain import verify_chain
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.errors import ChainError
from airpanda.x509.files import read_public
from airpanda.x509.trust import TrustDirectory

log = logging.getLogger(__name__)
MAX_CONNECTIONS = 32
POLL = timedelta(milliseconds=200)
GRACE = timedelta(seconds=10)
E = TypeVar("E")


class MyProxyServer:
    """Accepts connections until ``stop``; each is served by a thread of its own, at most ``max_connections``."""

    def __init__(
        self,
        service: Service,
        context: ssl.SSLContext,
        trust: TrustDirectory,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        request_timeout: timedelta = timedelta(seconds=120),
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._service = service
        self._context = context
        self._trust = trust
        self._timeout = request_timeout
        self._max_connections = max_connections
        self._slots = threading.BoundedSemaphore(max_connections)
        self._stopping = threading.Event()
        self._keys = KeyPool(size=2)
        self._listener = socket.create_server((address, port), backlog=128)
        self._listener.settimeout(POLL.total_seconds())

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def stop(self) -> None:
        """Ask ``serve_forever`` to end; safe in a signal handler."""
        self._stopping.set()

    def serve_forever(self) -> None:
        """Serve until ``stop``, then wait for the requests under way."""
        with self._listener:
            while not self._stopping.is_set():
                if self._slots.acquire(timeout=POLL.total_seconds()):
                    self._accept()
        for _ in range(self._max_connections):
            self._slots.acquire(timeout=GRACE.total_seconds())
        self._keys.close()

    def _accept(self) -> None:
        try:
            raw, address = self._listener.accept()
        except OSError:  # nobody came within POLL, or somebody has left again
            self._slots.release()
            return
        threading.Thread(target=self._run, args=(raw, str(address[0])), daemon=True).start()

    def _run(self, raw: socket.socket, address: str) -> None:
        """The outermost frame of a connection: whatever happens in it must not end the server."""
        connection = tls.Connection(raw, self._timeout)
        try:
            connection.start_tls(self._context, server=True)
            self._serve(_Talk(connection))
        except (OSError, MyProxyServiceError) as error:
            log.info("client=%s connection ended: %s", address, _one_line(error))
        except Exception:  # a bug of ours ends this connection only, and is written down
            log.exception("client=%s request failed", address)
        finally:
            connection.close()
            self._slots.release()

    def _serve(self, talk: _Talk) -> None:
        try:
            peer = self._peer(talk)
            request = talk.expect(protocol.RequestReceived).request
            self._answer(talk, peer, request)
            log.info("dn=%s command=%s user=%s: done", peer.dn, request.command.name, _one_line(request.username))
        except Denied as error:
            log.info("refused: %s", _one_line(error))
            talk.refuse(*error.lines)
        except (RequestError, ProtocolViolationError) as error:
            log.info("bad request: %s", _one_line(error))
            talk.refuse("error parsing request", str(error))

    def _peer(self, talk: _Talk) -> Peer:
        chain = tls.peer_chain(talk.connection.tls)
        if talk.connection.tls.version() == "TLSv1.3":
            talk.connection.send(b"\0")  # as the original does; clients skip it
        if not chain:
            return Peer()
        try:
            return Peer.of(verify_chain(chain, trust=self._trust.current(), now=utcnow()))
        except ChainError as error:
            raise Denied(f"the client's certificate is refused: {error}", "authentication failed") from error

    def _answer(self, talk: _Talk, peer: Peer, request: Request) -> None:
        service, machine = self._service, talk.protocol
        if request.command is Command.GET:
            self._get(talk, peer, request)
        elif request.command is Command.PUT:
            self._put(talk, peer, request)
        elif request.command is Command.STORE:
            service.check_store(peer, request)
            talk.connection.send(machine.send_ok())
            service.store(peer, request, talk.expect(protocol.PemReceived).pem, utcnow())
            talk.connection.send(machine.send_final())
        elif request.command is Command.RETRIEVE:
            text = service.retrieve(peer, request)
            for message in (machine.send_ok(), machine.send_pem(text), machine.send_final()):
                talk.connection.send(message)
        else:
            talk.connection.send(machine.send_ok(self._fields(peer, request)))

    def _fields(self, peer: Peer, request: Request) -> tuple[tuple[str, str], ...]:
        """Do what is done in one step; the lines of its response."""
        if request.command is Command.INFO:
            return messages.info_fields(self._service.info(peer, request))
        if request.command is Command.GET_TRUSTROOTS:
            return messages.trust_root_fields(self._service.trust_roots())
        if request.command is Command.DESTROY:
            self._service.destroy(peer, request)
        else:
            self._service.change_passphrase(peer, request)
        return ()

    def _get(self, talk: _Talk, peer: Peer, request: Request) -> None:
        machine, proven = talk.protocol, None
        if self._service.needs_proof(peer, request):
            challenge = secrets.token_hex(16)
            talk.connection.send(machine.send_challenge(challenge))
            proven = self._service.prove(talk.expect(protocol.AuthorizationReceived), challenge, utcnow())
        opened = self._service.open(peer, request, utcnow(), proven=proven)
        fields = messages.trust_root_fields(self._service.trust_roots()) if request.trusted_certs else ()
        talk.connection.send(machine.send_ok(fields))
        chain = self._service.delegate(opened, talk.expect(protocol.CsrReceived).csr, utcnow())
        talk.connection.send(machine.send_chain(chain))
        talk.connection.send(machine.send_final())

    def _put(self, talk: _Talk, peer: Peer, request: Request) -> None:
        machine = talk.protocol
        self._service.check_store(peer, request)
        key, csr = self._keys.take()
        talk.connection.send(machine.send_ok())
        talk.connection.send(machine.send_csr(csr))
        self._service.put(peer, request, talk.expect(protocol.ChainReceived).chain, key, utcnow())
        talk.connection.send(machine.send_final())


class _Talk:
    """One conversation over one connection."""

    def __init__(self, connection: tls.Connection) -> None:
        self.connection = connection
        self.protocol = ServerProtocol()

    def expect(self, kind: type[E]) -> E:
        event = self.protocol.next_event()
        while event is protocol.NEED_DATA:
            self.protocol.receive_data(self.connection.receive())
            self.protocol.end_of_record()
            event = self.protocol.next_event()
        if not isinstance(event, kind):
            raise ProtocolViolationError(f"the client sends {type(event).__name__} at a wrong time")
        return event

    def refuse(self, *lines: str) -> None:
        """Say no, and read what is under way: closing over unread data would destroy our answer."""
        self.connection.send(self.protocol.send_error(*lines))
        self.connection.finish()


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the server until SIGTERM or SIGINT; 0 at the end, 2 for a wrong configuration."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        server = _build(options)
    except (AirpandaError, OSError) as error:
        print(f"myproxy server: {error}", file=sys.stderr)
        return 2

    def stop(_signal: int, _frame: Optional[FrameType]) -> None:
        server.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if options.port_file is not None:
        temporary = options.port_file.with_name(f".{options.port_file.name}.new")
        temporary.write_text(f"{server.port}\n")
        temporary.replace(options.port_file)
    log.info("listening on %s port %s", options.listen, server.port)
    server.serve_forever()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m airpanda.myproxy.server", description="MyProxy development server")
    parser.add_argument("--config", type=Path, required=True, help="policies, as in myproxy-server.config")
    parser.add_argument("--storage", type=Path, required=True, help="directory for credentials, 0700, made if missing")
    parser.add_argument("--ca-dir", type=Path, required=True, help="CA directory with hashed names")
    parser.add_argument("--host-cert", type=Path, required=True)
    parser.add_argument("--host-key", type=Path, required=True)
    parser.add_argument("--listen", default="127.0.0.1", help="address; the loopback interface by default")
    parser.add_argument("--port", type=int, default=7512, help="0 for a free one")
    parser.add_argument("--port-file", type=Path, help="where to write the port")
    return parser


def _build(options: argparse.Namespace) -> MyProxyServer:
    text = read_public(options.config).decode("utf-8", "replace")
    policies = ServerPolicies.parse(text, where=str(options.config))
    trust = TrustDirectory(options.ca_dir)
    trust.current()
    host = ProxyCredential.from_files(options.host_cert, options.host_key)
    if sys.version_info < (3, 10):
        raise ConfigurationError("the MyProxy server needs Python 3.10 or later to see a client's chain")
    return MyProxyServer(
        Service(CredentialStore(options.storage), policies, trust),
        tls.server_context(options.ca_dir, host),
        trust,
        address=options.listen,
        port=options.port,
        request_timeout=policies.request_timeout,
    )


def _one_line(value: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(value))[:500]


if __name__ == "__main__":
    sys.exit(main())
