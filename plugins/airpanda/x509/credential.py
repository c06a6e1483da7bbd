"""A certificate with its private key and its chain: a proxy, or an end entity's own pair."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Optional

from cryptography import x509

from airpanda.core.records import dataclass, field
from airpanda.core.secret import Secret
from airpanda.x509 import pem
from airpanda.x509.certificates import LIMITED, PrivateKey, not_after, not_before, proxy_cert_info, public_key, same_key
from airpanda.x509.dn import subject_dn
from airpanda.x509.errors import CredentialFileError
from airpanda.x509.files import read_private, read_public, write_private


@dataclass(frozen=True, eq=False)
class ProxyCredential:
    """A credential that can act: a proxy with its chain, or an end-entity certificate (EEC) with its key.

    The key belongs to ``certificate``; ``chain`` follows it, issuer first. Nothing here is verified against a
    CA: that is ``airpanda.x509.chain.verify_chain``.
    """

    certificate: x509.Certificate
    private_key: PrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()

    def __post_init__(self) -> None:
        if not same_key(self.private_key.public_key(), public_key(self.certificate)):
            raise CredentialFileError("the private key does not belong to the first certificate")

    @classmethod
    def from_pem(cls, data: bytes, passphrase: Optional[Secret[str]] = None) -> ProxyCredential:
        """Read PEM text with the leaf first, one key, and the chain in order, as Globus writes it.

        Raises:
            CredentialFileError: anything else; the text is never quoted.
        """
        certificates, keys = pem.split(data)
        if not certificates:
            raise CredentialFileError("there is no certificate")
        if len(keys) != 1:
            raise CredentialFileError(f"there are {len(keys)} private keys where there must be one")
        leaf, *chain = pem.parse_certificates(certificates)
        return cls(leaf, pem.load_key(keys[0], passphrase), tuple(chain))

    @classmethod
    def load(cls, path: Path) -> ProxyCredential:
        """Read a proxy file, which must be a regular file of this account with mode 0600 or less.

        Raises:
            CredentialFileError: the file or its content is unfit.
        """
        return cls.from_pem(read_private(path))

    @classmethod
    def from_files(cls, cert_path: Path, key_path: Path, passphrase: Optional[Secret[str]] = None) -> ProxyCredential:
        """Read an end entity's certificate (with chain, if any) and its key, which may be protected.

        Raises:
            CredentialFileError: a file or its content is unfit, or the passphrase is missing or wrong.
        """
        leaf, *chain = pem.load_certificates(read_public(cert_path))
        _, keys = pem.split(read_private(key_path))
        if len(keys) != 1:
            raise CredentialFileError(f"{key_path} holds {len(keys)} private keys where there must be one")
        return cls(leaf, pem.load_key(keys[0], passphrase), tuple(chain))

    def to_pem(self) -> Secret[bytes]:
        """Leaf, key, chain: the order that Globus writes and VOMS reads."""
        key = pem.key_pem(self.private_key)
        return Secret(pem.certificates_pem([self.certificate]) + key + pem.certificates_pem(self.chain))

    def write(self, path: Path) -> None:
        """Put the proxy file at ``path`` with mode 0600, whole or not at all.

        Raises:
            CredentialFileError: the directory does not allow it.
        """
        write_private(path, self.to_pem().reveal())

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """Leaf first, then the chain."""
        return (self.certificate, *self.chain)

    @property
    def eec(self) -> x509.Certificate:
        """The end-entity certificate: the first of the chain that is no proxy.

        Raises:
            CredentialFileError: the chain ends before it.
        """
        for certificate in self.certificates:
            if proxy_cert_info(certificate) is None:
                return certificate
        raise CredentialFileError("the chain holds only proxies: the end-entity certificate is missing")

    @property
    def subject_dn(self) -> str:
        """Subject of the leaf, in one-line form."""
        return subject_dn(self.certificate)

    @property
    def identity(self) -> str:
        """DN of the end entity, from the chain; not yet verified against a CA."""
        return subject_dn(self.eec)

    @property
    def not_before(self) -> datetime:
        """When the last of leaf and chain becomes valid."""
        return max(map(not_before, self.certificates))

    @property
    def not_after(self) -> datetime:
        """When the first of leaf and chain expires."""
        return min(map(not_after, self.certificates))

    @property
    def is_proxy(self) -> bool:
        return proxy_cert_info(self.certificate) is not None

    @property
    def is_limited(self) -> bool:
        """Whether any proxy of the chain is limited; limitation is inherited."""
        return any(info.language == LIMITED for info in map(proxy_cert_info, self.certificates) if info is not None)
