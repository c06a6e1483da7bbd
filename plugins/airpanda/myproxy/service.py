"""What the development server decides: who may do what with which credential. No sockets.

Each method answers a request of an authenticated (or anonymous) client, or raises ``Denied`` with the words for
its ERROR lines, the same words as the original server's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Optional

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from airpanda.core.errors import AirpandaError, CredentialError, RequestError
from airpanda.core.secret import Secret
from airpanda.myproxy import policy, protocol
from airpanda.myproxy.config import ServerPolicies
from airpanda.myproxy.store import CredentialStore, StoredCredential
from airpanda.myproxy.values import CredentialInfo, Request
from airpanda.x509 import pem
from airpanda.x509.certificates import PrivateKey, not_after, not_before, public_key, signature_is_by
from airpanda.x509.chain import VerifiedChain, verify_chain
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.errors import ChainError, CredentialFileError
from airpanda.x509.proxy import sign_request
from airpanda.x509.trust import TrustDirectory

ANONYMOUS = "<anonymous>"
# Over our own random text, a SHA-1 signature still proves possession; older clients send nothing else.
_DIGESTS = {protocol.AUTHORIZE_SHA256: hashes.SHA256(), protocol.AUTHORIZE_SHA1: hashes.SHA1()}  # noqa: S303
MIN_LIFETIME, DEFAULT_LIFETIME = timedelta(minutes=1), timedelta(minutes=5)


class Denied(AirpandaError):
    """The answer is no; ``lines`` are the ERROR lines."""

    code = "myproxy-denied"

    def __init__(self, *lines: str) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class Peer:
    """The client as TLS and our own verification know it."""

    dn: str = ANONYMOUS
    limited: bool = False

    @classmethod
    def of(cls, verified: Optional[VerifiedChain]) -> Peer:
        return cls() if verified is None else cls(verified.identity_dn, verified.limited)


@dataclass(frozen=True)
class Opened:
    """A credential whose key is in hand, cleared for one delegation."""

    credential: ProxyCredential
    lifetime: timedelta
    limited: bool


class Service:
    """The rules over a store."""

    def __init__(self, store: CredentialStore, policies: ServerPolicies, trust: TrustDirectory) -> None:
        self._store = store
        self._policies = policies
        self._trust = trust

    def needs_proof(self, peer: Peer, request: Request) -> bool:
        """Whether GET must challenge this client for an old proxy: no passphrase, not trusted, but a renewer."""
        stored = self._found(request)
        if request.passphrase.reveal() or _encrypted(stored) or self._trusted(peer, stored):
            return False
        return self._renewer(peer, stored)

    def open(self, peer: Peer, request: Request, now: datetime, *, proven: Optional[VerifiedChain] = None) -> Opened:
        """Clear a GET. ``proven`` is the old proxy that a renewer has proven to hold."""
        stored = self._found(request)
        if proven is None or not self._renewer(peer, stored):
            self._require_retriever(peer, stored)
            self._require_way_in(peer, stored, request)
        elif proven.identity_dn != stored.owner:
            raise Denied("the old proxy is not the owner's", "authentication failed")
        credential = _unlock(stored, request.passphrase)
        if credential.not_after <= now:
            raise Denied("requested credentials have expired")
        limited = peer.limited or (proven is not None and proven.limited)
        return Opened(credential, self._granted(request, stored), limited)

    def delegate(self, opened: Opened, csr: bytes, now: datetime) -> list[bytes]:
        """Sign a client's request."""
        try:
            return sign_request(opened.credential, csr, lifetime=opened.lifetime, now=now, limited=opened.limited)
        except (RequestError, CredentialError) as error:
            raise Denied("Unable to delegate credentials", str(error)) from error

    def prove(self, proof: protocol.AuthorizationReceived, challenge: str, now: datetime) -> VerifiedChain:
        """The old proxy that a renewer holds: the whole chain is verified, and the signature over our challenge."""
        try:
            chain = pem.parse_certificates(proof.chain, encoding="DER")
            verified = verify_chain(chain, trust=self._trust.current(), now=now)
        except (CredentialFileError, ChainError) as error:
            raise Denied("the old proxy is refused", "authentication failed") from error
        digest = _DIGESTS.get(proof.method)
        if digest is None or not signature_is_by(public_key(chain[0]), proof.signature, challenge.encode(), digest):
            raise Denied("the old proxy's signature is wrong", "authentication failed")
        return verified

    def check_store(self, peer: Peer, request: Request) -> None:
        """May this client put or store under this name? Raises ``Denied``."""
        self._require_accepted(peer)
        present = self._store.find(request.username, request.cred_name or "")
        if present is not None and present.owner != peer.dn:
            raise Denied(f"Credentials are already stored for this name and they are not owned by {peer.dn}")
        for pattern in vars(request.policies).values():
            if pattern is not None:
                policy.parse(pattern)

    def put(self, peer: Peer, request: Request, chain: Sequence[bytes], key: PrivateKey, now: datetime) -> None:
        """Keep what a client has delegated to ``key``; encrypted where the request has a passphrase."""
        credential = _paired(chain, key)
        self._verify_owner(peer, credential.certificates, now)
        self._save(peer, request, _text(credential, request.passphrase if request.passphrase.reveal() else None))

    def store(self, peer: Peer, request: Request, text: Secret[bytes], now: datetime) -> None:
        """Keep what a client sends. An encrypted key stays as it is, and nobody here can open it."""
        try:
            blocks, keys = pem.split(text.reveal())
            if len(keys) != 1 or not blocks:
                raise CredentialFileError("a credential is one key and its certificates")
            leaf, *chain = pem.parse_certificates(blocks)
            if not _is_encrypted(keys[0]):
                ProxyCredential(leaf, pem.load_key(keys[0]), tuple(chain))
        except CredentialFileError as error:
            raise Denied(f"the credential is refused: {error}") from error
        self._verify_owner(peer, [leaf, *chain], now)
        ordered = pem.certificates_pem([leaf]) + keys[0] + pem.certificates_pem(chain)
        self._save(peer, request, Secret(ordered))

    def retrieve(self, peer: Peer, request: Request) -> Secret[bytes]:
        """Give out a stored credential as it is, where both policies allow that and the passphrase opens it."""
        stored = self._found(request)
        own, limit = stored.policies.key_retriever, self._policies
        self._require(
            peer, "authorized_key_retrievers", limit.authorized_key_retrievers, own, limit.default_key_retrievers
        )
        if not _encrypted(stored) or not request.passphrase.reveal():
            raise Denied("no passphrase", "authentication failed")
        _unlock(stored, request.passphrase)
        return stored.pem

    def info(self, peer: Peer, request: Request) -> list[CredentialInfo]:
        """The caller's own credentials under a user name."""
        found = self._store.owned(request.username, peer.dn) if peer.dn != ANONYMOUS else []
        if not found:
            raise Denied(f"no credentials found for user {request.username}, owner {peer.dn}")
        return [_describe(stored) for stored in found]

    def destroy(self, peer: Peer, request: Request) -> None:
        """Remove one of the caller's own credentials."""
        self._require_accepted(peer)
        with self._store.lock:
            self._store.remove(self._own(peer, request, "Credentials do not exist."))

    def change_passphrase(self, peer: Peer, request: Request) -> None:
        """Encrypt one of the caller's own keys anew."""
        new = request.new_passphrase
        if new is None or not new.reveal():
            raise Denied("error parsing request", "the new passphrase is missing")
        with self._store.lock:
            stored = self._own(peer, request, f"{peer.dn} does not own the credentials")
            credential = _unlock(stored, request.passphrase)
            self._store.save(replace(stored, pem=_text(credential, new)))

    def trust_roots(self) -> dict[str, bytes]:
        """The files of ``cert_dir``; nothing where it is not configured."""
        directory = self._policies.cert_dir
        if directory is None:
            raise Denied("this server gives out no trust roots")
        suffixes = (".0", ".r0", ".signing_policy", ".namespaces")
        paths = sorted(path for path in directory.iterdir() if path.suffix in suffixes and path.is_file())
        return {path.name: path.read_bytes() for path in paths}

    def _found(self, request: Request) -> StoredCredential:
        stored = self._store.find(request.username, request.cred_name or "")
        if stored is None:
            raise Denied(f'No credentials exist with username "{request.username}" and this credential name.')
        return stored

    def _own(self, peer: Peer, request: Request, missing: str) -> StoredCredential:
        stored = self._store.find(request.username, request.cred_name or "")
        if stored is None:
            raise Denied(missing)
        if stored.owner != peer.dn:
            raise Denied(f'Credentials not owned by "{peer.dn}".')
        return stored

    def _save(self, peer: Peer, request: Request, text: Secret[bytes]) -> None:
        with self._store.lock:
            self.check_store(peer, request)  # once more: somebody else may have been faster
            self._store.save(
                StoredCredential(
                    username=request.username,
                    cred_name=request.cred_name or "",
                    owner=peer.dn,
                    pem=text,
                    lifetime_s=request.lifetime_s,
                    policies=request.policies,
                    description=request.description,
                )
            )

    def _verify_owner(self, peer: Peer, certificates: Sequence[x509.Certificate], now: datetime) -> None:
        try:
            verified = verify_chain(certificates, trust=self._trust.current(), now=now)
        except ChainError as error:
            raise Denied(f"the credential is refused: {error}") from error
        if verified.identity_dn != peer.dn:
            raise Denied("the credential is not the client's own")

    def _require_accepted(self, peer: Peer) -> None:
        accepted = self._policies.accepted_credentials
        if peer.dn == ANONYMOUS or not _any(accepted, peer.dn):
            raise Denied(f'"{peer.dn}" not authorized by server\'s accepted_credentials policy')

    def _require_retriever(self, peer: Peer, stored: StoredCredential) -> None:
        own, limit = stored.policies.retriever, self._policies
        self._require(peer, "authorized_retrievers", limit.authorized_retrievers, own, limit.default_retrievers)

    def _require_way_in(self, peer: Peer, stored: StoredCredential, request: Request) -> None:
        """A passphrase that opens an encrypted key, or trust in the client for one that is not."""
        if _encrypted(stored):
            if not request.passphrase.reveal():
                raise Denied("invalid credential passphrase")
        elif not self._trusted(peer, stored):
            raise Denied("no passphrase", "authentication failed")

    def _require(
        self, peer: Peer, name: str, server: Sequence[str], own: Optional[str], default: Sequence[str]
    ) -> None:
        if not _any(server, peer.dn):
            raise Denied(f'"{peer.dn}" not authorized by server\'s {name} policy')
        if not _any((own,) if own is not None else default, peer.dn):
            whose = "credential's" if own is not None else "server's default"
            raise Denied(f'"{peer.dn}" not authorized by {whose} {name} policy')

    def _trusted(self, peer: Peer, stored: StoredCredential) -> bool:
        own, limit = stored.policies.trusted_retriever, self._policies
        return _both(peer, limit.trusted_retrievers, own, limit.default_trusted_retrievers)

    def _renewer(self, peer: Peer, stored: StoredCredential) -> bool:
        own, limit = stored.policies.renewer, self._policies
        return _both(peer, limit.authorized_renewers, own, limit.default_renewers)

    def _granted(self, request: Request, stored: StoredCredential) -> timedelta:
        """Whole minutes; under one minute five; 0 as long as possible; never over the limits."""
        asked = timedelta(seconds=request.lifetime_s)
        limits = [timedelta(seconds=stored.lifetime_s)] if stored.lifetime_s else []
        limits += [self._policies.max_proxy_lifetime] if self._policies.max_proxy_lifetime is not None else []
        if asked:
            limits.append(DEFAULT_LIFETIME if asked < MIN_LIFETIME else asked - asked % MIN_LIFETIME)
        return min(limits, default=timedelta(days=3650))


def _any(patterns: Sequence[str], dn: str) -> bool:
    return any(policy.matches(pattern, dn) for pattern in patterns)


def _both(peer: Peer, server: Sequence[str], own: Optional[str], default: Sequence[str]) -> bool:
    """Nobody anonymous is ever trusted or a renewer."""
    if peer.dn == ANONYMOUS or not _any(server, peer.dn):
        return False
    return _any((own,) if own is not None else default, peer.dn)


def _is_encrypted(block: bytes) -> bool:
    return b"ENCRYPTED" in block[:200]


def _encrypted(stored: StoredCredential) -> bool:
    _, keys = pem.split(stored.pem.reveal())
    return any(map(_is_encrypted, keys))


def _unlock(stored: StoredCredential, passphrase: Secret[str]) -> ProxyCredential:
    try:
        return ProxyCredential.from_pem(stored.pem.reveal(), passphrase)
    except CredentialFileError as error:
        raise Denied("invalid credential passphrase") from error


def _text(credential: ProxyCredential, passphrase: Optional[Secret[str]]) -> Secret[bytes]:
    if passphrase is None:
        return credential.to_pem()
    key = pem.encrypted_key_pem(credential.private_key, passphrase)
    return Secret(pem.certificates_pem([credential.certificate]) + key + pem.certificates_pem(credential.chain))


def _paired(chain: Sequence[bytes], key: PrivateKey) -> ProxyCredential:
    try:
        leaf, *rest = pem.parse_certificates(chain, encoding="DER")
        return ProxyCredential(leaf, key, tuple(rest))
    except CredentialFileError as error:
        raise Denied(f"the delegated proxy is refused: {error}") from error


def _describe(stored: StoredCredential) -> CredentialInfo:
    blocks, _ = pem.split(stored.pem.reveal())
    certificates = pem.parse_certificates(blocks)
    start = max(map(not_before, certificates))
    end = min(map(not_after, certificates))
    return CredentialInfo(stored.cred_name, stored.owner, start, end, stored.policies, stored.description)
