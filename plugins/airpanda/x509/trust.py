"""What a site trusts: the CAs, revocation lists and signing policies of a certificate directory."""

from __future__ import annotations

import _thread
import re
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

from cryptography import x509

from airpanda.core.errors import ConfigurationError
from airpanda.core.records import dataclass
from airpanda.x509 import certificates as facts
from airpanda.x509 import pem
from airpanda.x509.dn import raw_names, subject_dn
from airpanda.x509.errors import CredentialFileError
from airpanda.x509.policy import SigningPolicy

MAX_CRL_BYTES = 64 * 1024 * 1024
_CA_FILE = re.compile(r"([0-9a-f]{8})\.[0-9]+")
_CRL_FILE = re.compile(r"[0-9a-f]{8}\.r[0-9]+")


@dataclass(frozen=True, eq=False)
class TrustedCa:
    """One CA certificate with what came beside it.

    ``policies`` holds each signing policy found under one of the CA's file names: all of them must allow a
    subject. It is empty where the directory has none.
    """

    certificate: x509.Certificate
    policies: tuple[SigningPolicy, ...] = ()

    def may_certify(self, subject: str) -> bool:
        """Whether every policy allows this subject DN; true where there is no policy at all."""
        return all(policy.allows(subject_dn(self.certificate), subject) for policy in self.policies)


class TrustStore:
    """A snapshot of trust. CAs are matched by subject bytes and signature, never by file name."""

    def __init__(self, cas: Iterable[TrustedCa], crls: Iterable[x509.CertificateRevocationList] = ()) -> None:
        self._cas: dict[bytes, list[TrustedCa]] = {}
        for ca in cas:
            self._cas.setdefault(raw_names(ca.certificate)[1], []).append(ca)
        self._crls: dict[bytes, list[x509.CertificateRevocationList]] = {}
        for crl in crls:
            self._crls.setdefault(crl.issuer.public_bytes(), []).append(crl)

    @classmethod
    def from_directory(cls, path: Path) -> TrustStore:
        """Read ``<hash>.0``, ``<hash>.r0`` and ``<hash>.signing_policy`` as OpenSSL and Globus lay them out.

        Raises:
            ConfigurationError: no directory, no CA in it, or an unreadable file, which it names.
        """
        try:
            names = sorted(entry.name for entry in path.iterdir())
        except OSError as error:
            raise ConfigurationError(f"the CA directory {path} cannot be read: {error.strerror}") from error
        found: dict[str, tuple[x509.Certificate, list[SigningPolicy]]] = {}
        for name in names:
            match = _CA_FILE.fullmatch(name)
            if match is not None:
                policy = _read_policy(path / f"{match[1]}.signing_policy")
                for certificate in _read_cas(path / name):
                    _, policies = found.setdefault(facts.fingerprint(certificate), (certificate, []))
                    policies.extend(policy)
        if not found:
            raise ConfigurationError(
                f"the CA directory {path} holds no CA (<hash>.0); install the site's trust anchors"
            )
        crls = [_read_crl(path / name) for name in names if _CRL_FILE.fullmatch(name)]
        return cls((TrustedCa(certificate, tuple(policies)) for certificate, policies in found.values()), crls)

    def is_anchor(self, certificate: x509.Certificate) -> bool:
        """Whether this very certificate is one of the CAs."""
        return any(ca.certificate == certificate for ca in self._cas.get(raw_names(certificate)[1], ()))

    def issuer_of(self, certificate: x509.Certificate) -> Optional[TrustedCa]:
        """The CA that bears the issuer's name and whose key verifies the signature."""
        candidates = self._cas.get(raw_names(certificate)[0], ())
        return next((ca for ca in candidates if facts.signed_by(certificate, ca.certificate)), None)

    def has_ca_named(self, name: bytes) -> bool:
        """Whether a CA bears this DER name; says nothing about keys."""
        return name in self._cas

    def crls_of(self, ca: x509.Certificate) -> Sequence[x509.CertificateRevocationList]:
        """The revocation lists that this CA has signed."""
        key = facts.public_key(ca)
        named = self._crls.get(raw_names(ca)[1], ())
        return [crl for crl in named if _crl_is_by(crl, key)]


class TrustDirectory:
    """A certificate directory that is read again when a snapshot is older than ``max_age_s``; thread safe.

    A directory that has become unreadable is an error at once: old trust is not used on.
    """

    def __init__(self, path: Path, *, max_age_s: float = 60.0) -> None:
        self._path = path
        self._max_age_s = max_age_s
        self._lock = _thread.allocate_lock()
        self._store: Optional[TrustStore] = None
        self._read_at = 0.0

    def current(self) -> TrustStore:
        """The present snapshot.

        Raises:
            ConfigurationError: as ``TrustStore.from_directory``.
        """
        with self._lock:
            now = time.monotonic()
            if self._store is None or now - self._read_at > self._max_age_s:
                self._store = None
                self._store = TrustStore.from_directory(self._path)
                self._read_at = now
            return self._store


def crl_next_update(crl: x509.CertificateRevocationList) -> Optional[datetime]:
    """When the list ends, aware; None where it does not say."""
    if hasattr(crl, "next_update_utc"):
        return crl.next_update_utc
    return crl.next_update.replace(tzinfo=timezone.utc) if crl.next_update else None


def crl_last_update(crl: x509.CertificateRevocationList) -> datetime:
    """When the list begins, aware."""
    if hasattr(crl, "last_update_utc"):
        return crl.last_update_utc
    return crl.last_update.replace(tzinfo=timezone.utc)


def _crl_is_by(crl: x509.CertificateRevocationList, key: object) -> bool:
    digest = facts.digest_of(crl)
    algorithm = crl.signature_hash_algorithm if digest not in (None, "none") else None
    return digest is not None and facts.signature_is_by(key, crl.signature, crl.tbs_certlist_bytes, algorithm)


def _read_cas(path: Path) -> list[x509.Certificate]:
    try:
        return pem.load_certificates(_read(path, pem.MAX_PEM_BYTES))
    except CredentialFileError as error:
        raise ConfigurationError(f"{path} holds no readable CA certificate: {error}") from error


def _read_crl(path: Path) -> x509.CertificateRevocationList:
    data = _read(path, MAX_CRL_BYTES)
    try:
        load = x509.load_pem_x509_crl if b"-----BEGIN" in data else x509.load_der_x509_crl
        return load(data)
    except ValueError as error:
        raise ConfigurationError(f"{path} is no readable revocation list") from error


def _read_policy(path: Path) -> list[SigningPolicy]:
    if not path.exists():
        return []
    try:
        return [SigningPolicy.parse(_read(path, pem.MAX_PEM_BYTES).decode("utf-8", "strict"))]
    except ValueError as error:
        raise ConfigurationError(f"{path} is no signing policy: {error}") from error


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ConfigurationError(f"{path} is longer than {limit} bytes")
    return data
