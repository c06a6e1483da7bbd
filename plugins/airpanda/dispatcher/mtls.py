"""Mutual TLS with RFC 3820 proxies under uvicorn: whom the peer of a connection stands for.

OpenSSL checks the chain's signatures while the connection is made; that says nothing of proxy rules, revocation and
signing policies. Those are checked here, by the ``x509`` room, at the first request and again when the trust
directory was read anew.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from airpanda.core.clock import utcnow
from airpanda.dispatcher.auth import PEER_CHAIN
from airpanda.x509.chain import VerifiedChain, verify_chain
from airpanda.x509.trust import TrustDirectory, TrustStore


def server_context(cert: Path, key: Path, ca_dir: Path) -> ssl.SSLContext:
    """TLS 1.2 or later; a client may present a chain, which must then lead to the CA directory."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key, password="")
    context.load_verify_locations(capath=ca_dir)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VerifyFlags.VERIFY_ALLOW_PROXY_CERTS
    # A resumed session has lost the chain, and with it the identity.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


class PeerChain:
    """The chain of one connection's peer, verified when asked for."""

    def __init__(self, certificates: list[bytes], trust: TrustDirectory) -> None:
        self._certificates = certificates
        self._trust = trust
        self._verified: tuple[TrustStore, VerifiedChain] | None = None

    def __call__(self) -> VerifiedChain | None:
        """The chain as verified, or None without a certificate.

        Raises:
            ChainError: the chain is refused now.
            ConfigurationError: the trust directory cannot be read.
        """
        if not self._certificates:
            return None
        trust, now = self._trust.current(), utcnow()
        if self._verified is None or self._verified[0] is not trust or self._verified[1].not_after <= now:
            chain = [x509.load_der_x509_certificate(each) for each in self._certificates]
            self._verified = (trust, verify_chain(chain, trust=trust, now=now))
        return self._verified[1]


def peer_certificates(ssl_object: Any) -> list[bytes]:
    """DER, leaf first, as OpenSSL verified them; empty without a client certificate."""
    get = getattr(ssl_object, "get_verified_chain", None)  # public from Python 3.13
    get = get or ssl_object._sslobj.get_verified_chain
    try:
        chain = get() or []
    except ValueError:  # no certificate was presented
        return []
    return [each if isinstance(each, bytes) else ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in chain]


def protocol_for(trust: TrustDirectory) -> type[HttpToolsProtocol]:
    """uvicorn's HTTP protocol, which also fills the ASGI ``tls`` extension of each request."""

    class MutualTlsProtocol(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            ssl_object = transport.get_extra_info("ssl_object")
            certificates = peer_certificates(ssl_object) if ssl_object is not None else []
            self._tls: dict[object, object] = {PEER_CHAIN: PeerChain(certificates, trust)}

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope.setdefault("extensions", {})["tls"] = self._tls

    return MutualTlsProtocol
