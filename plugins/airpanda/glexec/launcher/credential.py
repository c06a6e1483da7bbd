"""Rules 2 and 3: from the bytes of a proxy file to a verified identity and a rebuilt, clean PEM."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

from airpanda.core.errors import ConfigurationError
from airpanda.core.records import dataclass
from airpanda.core.secret import Secret
from airpanda.glexec.config import LauncherConfig
from airpanda.glexec.launcher.refusal import client_error
from airpanda.glexec.trusted import check_trusted
from airpanda.x509 import pem
from airpanda.x509.chain import ChainPolicy, VerifiedChain, verify_chain
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.dn import issuer_dn
from airpanda.x509.trust import TrustStore
from airpanda.x509.voms import VomsDirectory, attribute_certificates, verify_attributes


@dataclass(frozen=True)
class Identity:
    """Who the payload's owner is, by a chain that has passed; ``pem`` is rebuilt from its parts."""

    dn: str
    issuer: str
    serial: str
    fingerprint: str
    fqans: tuple[str, ...]
    limited: bool
    not_after: datetime
    pem: Secret[bytes]


def identify(proxy: Secret[bytes], config: LauncherConfig, now: datetime) -> Identity:
    """The identity that a proxy file stands for.

    Raises:
        CredentialFileError, MalformedChainError, IdentitySwitchError: no proxy chain (201).
        RefusedChainError, VomsError: trust, time, revocation, strength or the site's limits forbid it (203).
        ConfigurationError: the CA directory is unsafe or unusable (202).
    """
    credential = ProxyCredential.from_pem(proxy.reveal())
    _refuse_other_text(proxy)
    if not credential.is_proxy:
        raise client_error("the file holds an end-entity certificate with its key; a payload gets a proxy only")
    trust = load_trust(config.ca_dir)
    chain = verify_chain(credential.certificates, trust=trust, now=now, policy=_policy(config))
    return _identity(credential, chain, _fqans(credential, config, trust, now))


def _fqans(credential: ProxyCredential, config: LauncherConfig, trust: TrustStore, now: datetime) -> tuple[str, ...]:
    """The verified FQANs in full form, primary first. Attributes that do not verify refuse the proxy (203)."""
    if not config.voms or not attribute_certificates(credential.certificates):
        return ()
    check_trusted(config.voms_dir)
    directory = VomsDirectory.from_directory(config.voms_dir)
    verified = verify_attributes(credential.certificates, vomsdir=directory, trust=trust, now=now)
    fqans = (fqan for attributes in verified for fqan in attributes.fqans)
    return tuple(f"{fqan.group}/Role={fqan.role or 'NULL'}/Capability=NULL" for fqan in fqans)


def _policy(config: LauncherConfig) -> ChainPolicy:
    return ChainPolicy(
        allow_limited=config.allow_limited,
        max_proxy_lifetime=timedelta(hours=config.max_proxy_hours),
        require_crl=config.require_crl,
    )


def _identity(credential: ProxyCredential, chain: VerifiedChain, fqans: tuple[str, ...]) -> Identity:
    clean = ProxyCredential(credential.certificate, credential.private_key, (*chain.proxies[1:], chain.eec))
    return Identity(
        dn=chain.identity_dn,
        issuer=issuer_dn(chain.eec),
        serial=f"{chain.serial:x}",
        fingerprint=chain.fingerprint,
        fqans=fqans,
        limited=chain.limited,
        not_after=chain.not_after,
        pem=clean.to_pem(),
    )


def _refuse_other_text(proxy: Secret[bytes]) -> None:
    """A file that holds more than the chain and its key might mean something else to another reader."""
    rest = proxy.reveal()
    for blocks in pem.split(rest):
        for block in blocks:
            rest = rest.replace(block, b"", 1)
    if rest.strip():
        raise client_error("the proxy file holds more than certificates and one key")


def load_trust(directory: Path) -> TrustStore:
    """The site's trust anchors; no file of the directory may be writable by others.

    Raises:
        ConfigurationError: unsafe or unusable.
    """
    check_trusted(directory)
    for entry in os.scandir(directory):
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue  # a dangling link, as update tools leave behind
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise ConfigurationError(f"{entry.path} must belong to root and be writable by root only")
    return TrustStore.from_directory(directory)
