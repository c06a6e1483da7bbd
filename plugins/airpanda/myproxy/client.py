"""A MyProxy client: one TLS connection per call, bounded in time, size and number.

Blocking; safe to share between threads. Whatever comes back is checked before it is returned.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Optional

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from airpanda.core.clock import utcnow
from airpanda.core.errors import AirpandaError, CredentialError, RequestError
from airpanda.core.secret import Secret
from airpanda.myproxy import errors, messages, protocol, tls, values
from airpanda.myproxy.conversation import Conversation, require
from airpanda.myproxy.keys import KeyPool
from airpanda.myproxy.protocol import ClientProtocol
from airpanda.myproxy.values import Command, CredentialInfo, Policies, Request
from airpanda.x509 import pem
from airpanda.x509.certificates import PrivateKey
from airpanda.x509.chain import ChainPolicy, verify_chain
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.errors import ChainError, CredentialFileError
from airpanda.x509.proxy import sign_request
from airpanda.x509.trust import TrustDirectory, TrustStore

DEFAULT_TIMEOUT = timedelta(seconds=30)
_HOST_POLICY = ChainPolicy(require_client_usage=False)


class MyProxyClient:
    """Speaks to one server as one credential.

    Args:
        ca_dir: the site's certificate directory; checks the server and every chain that comes back.
        credential: who we are; None to stay anonymous.
        timeout: for a whole call.
        expect_dn: the server's exact DN, checked instead of its host name.
        keys: where keys for retrieved proxies come from; a pool of its own by default.
        max_concurrent: calls at the same time; the original server forks for each.

    All methods raise, besides what they name:
        MyProxyRefusedError: the server refuses; its children say why.
        MyProxyServiceError: the server fails; ``transient`` says whether to try again.
        RequestError: the call is wrong.
    """

    def __init__(
        self,
        host: str,
        port: int = values.DEFAULT_PORT,
        *,
        ca_dir: Path,
        credential: Optional[ProxyCredential] = None,
        timeout: timedelta = DEFAULT_TIMEOUT,
        expect_dn: Optional[str] = None,
        keys: Optional[KeyPool] = None,
        max_concurrent: int = 8,
    ) -> None:
        self.host = host
        self.port = port
        self.credential = credential
        self._timeout = timeout
        self._expect_dn = expect_dn
        self._keys = keys or KeyPool()
        self._trust = TrustDirectory(ca_dir)
        self._context = tls.client_context(ca_dir, credential, check_hostname=expect_dn is None)
        # The same certificate under the same snapshot of trust, which lives a minute, is not verified again.
        self._server_seen: Optional[tuple[TrustStore, bytes, datetime]] = None
        self._slots = threading.BoundedSemaphore(max_concurrent)

    @property
    def server(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"

    def get(
        self,
        username: str,
        passphrase: Secret[str] = values.NO_PASSPHRASE,
        *,
        cred_name: Optional[str] = None,
        lifetime: timedelta,
        min_lifetime: Optional[timedelta] = None,
        owner_dn: Optional[str] = None,
        renew: Optional[ProxyCredential] = None,
    ) -> ProxyCredential:
        """Delegate a fresh proxy to us. The key is made here and used once; the server may grant less time.

        Args:
            min_lifetime: refuse a proxy that ends earlier.
            owner_dn: whose proxy it must be.
            renew: an old proxy of the same owner; proves our right where we are a renewer.

        Raises:
            UnfitCredentialError: another key, another owner, too short, or a chain that does not verify.
        """
        request = self._request(Command.GET, username, passphrase, lifetime=lifetime, cred_name=cred_name)
        key, csr = self._keys.take()
        if not passphrase.reveal() or renew is not None:
            chain = self._delegation(request, csr, renew, early=False)
        else:  # no challenge will come: the certificate request can go out with the request, a round trip less
            try:
                chain = self._delegation(request, csr, renew, early=True)
            except errors.ClosedEarlyError:  # a server that closes over it may lose its own words: ask once more
                chain = self._delegation(request, csr, renew, early=False)
        return self._checked(_assemble(key, chain), owner_dn=owner_dn, min_lifetime=min_lifetime)

    def put(
        self,
        username: str,
        passphrase: Secret[str] = values.NO_PASSPHRASE,
        *,
        cred_name: Optional[str] = None,
        lifetime: timedelta,
        retrieval_lifetime: Optional[timedelta] = None,
        policies: Policies = Policies(),  # noqa: B008  # frozen
        description: Optional[str] = None,
        source: Optional[ProxyCredential] = None,
    ) -> None:
        """Delegate a proxy of ``source`` (our credential by default) to the server, which makes the key.

        Args:
            lifetime: of the stored proxy.
            retrieval_lifetime: the longest proxy it will give out; ``lifetime`` by default.

        ``store`` costs the server a seventeenth of this.
        """
        issuer = source or self._required_credential()
        limit = retrieval_lifetime or lifetime
        request = self._request(Command.PUT, username, passphrase, limit, cred_name, policies, description)
        with self._converse(request) as talk:
            talk.expect(protocol.Accepted)
            csr = talk.expect(protocol.CsrReceived)
            try:
                chain = sign_request(issuer, csr.csr, lifetime=lifetime, now=utcnow())
            except RequestError as error:
                raise errors.ProtocolViolationError(f"the MyProxy server {self.server}: {error}") from error
            talk.send(talk.protocol.send_chain(chain))
            talk.expect(protocol.Done)

    def store(
        self,
        username: str,
        source: ProxyCredential,
        key_passphrase: Secret[str],
        *,
        cred_name: Optional[str] = None,
        retrieval_lifetime: timedelta,
        policies: Policies = Policies(),  # noqa: B008  # frozen
        description: Optional[str] = None,
    ) -> None:
        """Store a credential made here, its key encrypted here (PKCS#8, AES-256) under ``key_passphrase``.

        The passphrase never leaves this process; whoever retrieves needs it.

        Raises:
            RequestError: an empty passphrase: nothing is stored unprotected this way.
        """
        if not key_passphrase.reveal():
            raise RequestError("a stored key must be protected by a passphrase")
        values.check_passphrase(key_passphrase)
        request = self._request(
            Command.STORE, username, values.NO_PASSPHRASE, retrieval_lifetime, cred_name, policies, description
        )
        text = pem.certificates_pem([source.certificate]) + pem.encrypted_key_pem(source.private_key, key_passphrase)
        with self._converse(request) as talk:
            talk.expect(protocol.Accepted)
            talk.send(talk.protocol.send_pem(Secret(text + pem.certificates_pem(source.chain))))
            talk.expect(protocol.Done)

    def retrieve(
        self, username: str, passphrase: Secret[str], *, cred_name: Optional[str] = None, owner_dn: Optional[str] = None
    ) -> ProxyCredential:
        """The stored credential itself, key included, where the server and its owner allow that.

        Raises:
            UnfitCredentialError: what came back is no credential, another owner's, or does not verify.
        """
        request = self._request(Command.RETRIEVE, username, passphrase, timedelta(seconds=1), cred_name)
        with self._converse(request) as talk:
            talk.expect(protocol.Accepted)
            event = talk.expect(protocol.PemReceived)
            talk.expect(protocol.Done)
        try:
            credential = ProxyCredential.from_pem(event.pem.reveal(), passphrase)
        except CredentialFileError as error:
            raise errors.UnfitCredentialError(f"what the server has stored is unfit: {error}") from error
        return self._checked(credential, owner_dn=owner_dn, min_lifetime=None)

    def info(self, username: str) -> tuple[CredentialInfo, ...]:
        """All credentials under this user name that are ours; none is no error."""
        try:
            accepted = self._short(Request(Command.INFO, username, values.UNUSED_PASSPHRASE))
        except errors.CredentialMissingError:
            return ()
        return messages.infos_of(accepted.response)

    def info_of(self, username: str, cred_name: str = "") -> CredentialInfo:
        """One of our credentials.

        Raises:
            CredentialMissingError: not there, or not ours.
        """
        for info in self.info(username):
            if info.cred_name == cred_name:
                return info
        raise errors.CredentialMissingError("there is no such credential of ours; stage it again")

    def destroy(self, username: str, *, cred_name: Optional[str] = None) -> None:
        """Remove one of our credentials.

        Raises:
            CredentialMissingError: it is not there: already removed, or never stored.
        """
        self._short(Request(Command.DESTROY, username, values.UNUSED_PASSPHRASE, cred_name=cred_name))

    def change_passphrase(
        self, username: str, old: Secret[str], new: Secret[str], *, cred_name: Optional[str] = None
    ) -> None:
        """Encrypt the stored key anew.

        Raises:
            WrongPassphraseError: ``old`` does not open it.
        """
        self._short(Request(Command.CHANGE_PASSPHRASE, username, old, new, cred_name=cred_name))

    def trustroots(self) -> messages.TrustRoots:
        """The server's CA directory. It is the server's word: install it only where the server is trusted."""
        accepted = self._short(Request(Command.GET_TRUSTROOTS, "trustroots", trusted_certs=True))
        return messages.trust_roots_of(accepted.response)

    def _delegation(
        self, request: Request, csr: bytes, old: Optional[ProxyCredential], *, early: bool
    ) -> tuple[bytes, ...]:
        with self._converse(request, early_csr=csr if early else None) as talk:
            event = talk.next()
            if isinstance(event, protocol.Challenged):
                talk.send(_prove(talk.protocol, event, old))
                event = talk.next()
            require(event, protocol.Accepted)
            if not early:
                talk.send(talk.protocol.send_csr(csr))
            chain = talk.expect(protocol.ChainReceived).chain
            talk.expect(protocol.Done)
        return chain

    def _short(self, request: Request) -> protocol.Accepted:
        with self._converse(request) as talk:
            return talk.expect(protocol.Accepted)

    def _request(
        self,
        command: Command,
        username: str,
        passphrase: Secret[str],
        lifetime: timedelta,
        cred_name: Optional[str] = None,
        policies: Policies = Policies(),  # noqa: B008  # frozen
        description: Optional[str] = None,
    ) -> Request:
        return Request(
            command,
            username,
            passphrase,
            lifetime_s=values.seconds(lifetime),
            cred_name=cred_name,
            policies=policies,
            description=description,
        )

    def _required_credential(self) -> ProxyCredential:
        if self.credential is None:
            raise RequestError("an anonymous MyProxy client has nothing to delegate")
        return self.credential

    def _checked(
        self, credential: ProxyCredential, *, owner_dn: Optional[str], min_lifetime: Optional[timedelta]
    ) -> ProxyCredential:
        now = utcnow()
        try:
            verified = verify_chain(credential.certificates, trust=self._trust.current(), now=now)
        except ChainError as error:
            raise errors.UnfitCredentialError(f"the credential from {self.server} is refused: {error}") from error
        if owner_dn is not None and verified.identity_dn != owner_dn:
            raise errors.UnfitCredentialError(f"the credential is {verified.identity_dn}'s, not {owner_dn}'s")
        if min_lifetime is not None and verified.not_after - now < min_lifetime:
            raise errors.UnfitCredentialError(
                f"the credential of {verified.identity_dn} ends at {verified.not_after:%F %T}Z, "
                f"before the {min_lifetime} that are needed; its owner must stage a longer one"
            )
        return credential

    @contextmanager
    def _converse(self, request: Request, *, early_csr: Optional[bytes] = None) -> Iterator[Conversation]:
        """One connection for one request; every fault of network and peer leaves as a typed error."""
        timeout = self._timeout.total_seconds()
        if self.credential is not None and self.credential.not_after <= utcnow():
            raise CredentialError(f"the credential of {self.credential.identity} has expired; its owner must renew it")
        if not self._slots.acquire(timeout=timeout):
            raise errors.UnreachableError(f"too many calls to MyProxy at {self.server} are waiting already")
        connection: Optional[tls.Connection] = None
        try:
            connection = self._connect()
            talk = Conversation(connection, ClientProtocol(request))
            talk.start(early_csr)
            yield talk
        except OSError as error:
            raise self._fault(error) from error
        finally:
            if connection is not None:
                connection.close()
            self._slots.release()

    def _connect(self) -> tls.Connection:
        raw = socket.create_connection((self.host, self.port), timeout=self._timeout.total_seconds())
        connection = tls.Connection(raw, self._timeout)
        try:
            connection.start_tls(self._context, server_hostname=self.host)
            self._check_server(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_server(self, connection: tls.Connection) -> None:
        """Revocation and signing policy, which TLS does not check; and the exact DN where one is expected."""
        certificate, trust, now = connection.tls.getpeercert(True) or b"", self._trust.current(), utcnow()
        seen = self._server_seen  # one read: other threads may replace it
        if seen is not None and seen[0] is trust and seen[1] == certificate and now < seen[2]:
            return
        try:
            parsed = pem.parse_certificates([certificate], encoding="DER")
            verified = verify_chain(parsed, trust=trust, now=now, policy=_HOST_POLICY)
        except (ChainError, CredentialFileError) as error:
            raise errors.UntrustedServerError(f"the certificate of {self.server} is refused: {error}") from error
        if self._expect_dn is not None and verified.identity_dn != self._expect_dn:
            raise errors.UntrustedServerError(f"{self.server} is {verified.identity_dn}, not {self._expect_dn}")
        self._server_seen = (trust, certificate, verified.not_after)

    def _fault(self, error: OSError) -> AirpandaError:
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = f"its certificate does not fit: {error.verify_message}; the site must act"
            return errors.UntrustedServerError(f"MyProxy at {self.server}: {reason}")
        if isinstance(error, socket.timeout):
            return errors.UnreachableError(f"MyProxy at {self.server} did not answer within {self._timeout}")
        reason = str(getattr(error, "reason", None) or error.strerror or error)
        if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            owner = self.credential.identity if self.credential is not None else "an anonymous client"
            return errors.MyProxyRefusedError(
                f"MyProxy at {self.server} does not accept the credential of {owner}: look at its CA, its revocation"
                " and the clock here",
                [reason],
            )
        if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return errors.ProtocolViolationError(f"MyProxy at {self.server} does not speak our TLS: {reason}")
        if isinstance(error, (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)):
            return errors.ClosedEarlyError(f"MyProxy at {self.server} has closed the connection: {reason}")
        return errors.UnreachableError(f"MyProxy at {self.server} cannot be reached: {reason}")


def _prove(machine: ClientProtocol, event: protocol.Challenged, old: Optional[ProxyCredential]) -> bytes:
    """Answer a challenge with the old proxy's signature; SHA-256 only."""
    if old is None:
        raise errors.PassphraseNeededError("this credential is for renewal: the old proxy is needed and was not given")
    text = event.challenges.get("X509_certificate_SHA256")
    if text is None:
        raise errors.ProtocolViolationError("the MyProxy server offers no renewal with SHA-256")
    if not isinstance(old.private_key, rsa.RSAPrivateKey):
        raise RequestError("MyProxy renewal needs an old proxy with an RSA key")
    signature = old.private_key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    chain = [certificate.public_bytes(serialization.Encoding.DER) for certificate in old.certificates]
    return machine.send_authorization(protocol.AUTHORIZE_SHA256, signature, chain)


def _assemble(key: PrivateKey, chain: tuple[bytes, ...]) -> ProxyCredential:
    try:
        leaf, *rest = pem.parse_certificates(chain, encoding="DER")
        return ProxyCredential(leaf, key, tuple(rest))
    except CredentialFileError as error:
        raise errors.UnfitCredentialError(f"the server's answer is no proxy for our key: {error}") from error
