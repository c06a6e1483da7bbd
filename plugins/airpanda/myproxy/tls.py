"""TLS for both sides: contexts, the peer's whole chain, and connections with one deadline."""

from __future__ import annotations

import os
import socket
import ssl
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional

from cryptography import x509

from airpanda.core.errors import ConfigurationError
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.errors import CredentialFileError

_ALLOW_PROXY_CERTS = 0x40  # X509_V_FLAG_ALLOW_PROXY_CERTS; ssl.VERIFY_ALLOW_PROXY_CERTS from Python 3.10
_QUICKACK: Optional[int] = getattr(socket, "TCP_QUICKACK", None)
_LAST_RECORDS = 64
RECORD_BYTES = 16 * 1024


def client_context(ca_dir: Path, credential: Optional[ProxyCredential], *, check_hostname: bool) -> ssl.SSLContext:
    """TLS 1.2 and later, the site's CAs, our credential with its chain.

    ``create_default_context`` is not used: it refuses the older CAs of the grid from Python 3.13 on.

    Raises:
        ConfigurationError: no such directory.
        CredentialFileError: the credential is not accepted by TLS.
    """
    if not ca_dir.is_dir():
        raise ConfigurationError(f"the CA directory {ca_dir} does not exist")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = check_hostname
    context.load_verify_locations(capath=str(ca_dir))
    if credential is not None:
        _load_credential(context, credential)
    return context


def server_context(ca_dir: Path, host: ProxyCredential) -> ssl.SSLContext:
    """TLS 1.2 and later; clients may show a certificate or proxy, or nothing. No session tickets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= _ALLOW_PROXY_CERTS
    context.load_verify_locations(capath=str(ca_dir))
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    _load_credential(context, host)
    return context


def peer_chain(connection: ssl.SSLSocket) -> list[x509.Certificate]:
    """The chain that TLS has verified, leaf first; empty for a peer without certificate.

    Raises:
        ConfigurationError: Python before 3.10 cannot tell the chain.
    """
    if connection.getpeercert(True) is None:
        return []
    public: Any = getattr(connection, "get_verified_chain", None)  # Python 3.13: DER
    if public is not None:
        return [x509.load_der_x509_certificate(der) for der in public()]
    private: Any = getattr(getattr(connection, "_sslobj", None), "get_verified_chain", None)  # 3.10 to 3.12: objects
    if private is None:
        raise ConfigurationError("the MyProxy server needs Python 3.10 or later to see a client's chain")
    return [x509.load_pem_x509_certificate(item.public_bytes().encode()) for item in private()]


class Connection:
    """A TLS socket whose calls share one deadline, in monotonic time.

    All methods raise ``socket.timeout`` (``TimeoutError``) after it, and ``OSError`` as sockets do.
    """

    def __init__(self, raw: socket.socket, timeout: timedelta) -> None:
        self._socket: socket.socket = raw
        self._deadline = time.monotonic() + timeout.total_seconds()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start_tls(
        self, context: ssl.SSLContext, *, server_hostname: Optional[str] = None, server: bool = False
    ) -> None:
        self._arm()
        self._socket = context.wrap_socket(self._socket, server_side=server, server_hostname=server_hostname)

    @property
    def tls(self) -> ssl.SSLSocket:
        assert isinstance(self._socket, ssl.SSLSocket)  # start_tls comes first
        return self._socket

    def send(self, data: bytes) -> None:
        self._arm()
        self._socket.sendall(data)

    def receive(self) -> bytes:
        """One TLS record, or empty at the end."""
        self._arm()
        if _QUICKACK is not None:  # the peer writes small records; delayed acknowledgements cost 40 ms each
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        try:
            return self._socket.recv(RECORD_BYTES)
        except ssl.SSLEOFError:
            return b""

    def finish(self) -> None:
        """Say that nothing more follows, and drop what the peer still sends, within bounds.

        A close over unread data would reset the connection and could destroy our last words.
        """
        self._socket.shutdown(socket.SHUT_WR)
        for _ in range(_LAST_RECORDS):
            if not self.receive():
                return

    def close(self) -> None:
        self._socket.close()

    def _arm(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise socket.timeout("the time for this conversation is over")
        self._socket.settimeout(left)


def _load_credential(context: ssl.SSLContext, credential: ProxyCredential) -> None:
    """Through an anonymous file in memory: the key touches no disk, and nobody else can open it."""
    descriptor = os.memfd_create("credential", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, credential.to_pem().reveal())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except ssl.SSLError as error:
        raise CredentialFileError(f"TLS does not accept the credential of {credential.identity}") from error
    finally:
        os.close(descriptor)
