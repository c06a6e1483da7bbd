"""A grid PKI for tests: ``pki`` for the session, and ``Pki`` for a test that wants its own.

Use it by ``from support.pki import Pki, pki`` in a test module or a folder's conftest.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest

from airpanda.x509.credential import ProxyCredential
from airpanda_demo.pki import CertFiles, DemoPki, issue, make_pki, write_crl

USERS = {
    "alice": "Alice Example",
    "bob": "Bob Example",
    "carol": "Carol Example",
    "pilot": "Robot: pilot factory 1",
    "pilot2": "Robot: pilot factory 2",
    "renewer": "Robot: renewer",
}


class Pki:
    """One PKI below ``root``: CA directory, host certificate, users made at first use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._demo = make_pki(root, users={})

    @property
    def demo(self) -> DemoPki:
        return self._demo

    @property
    def ca_dir(self) -> Path:
        return self._demo.ca_dir

    @property
    def ca(self) -> CertFiles:
        return self._demo.ca

    def host(self) -> CertFiles:
        """Certificate and key valid for localhost, 127.0.0.1 and this machine's name."""
        return self._demo.host

    def user(self, name: str) -> CertFiles:
        """Certificate and key of one of ``USERS``, or of somebody new whose CN is ``name``."""
        make_pki(self.root, users={name: USERS.get(name, name)})
        return self._demo.user(name)

    def dn(self, name: str) -> str:
        self.user(name)
        return self._demo.dn(name)

    def user_named(self, common_name: str) -> ProxyCredential:
        """The credential of a person with this very CN, whatever is in it."""
        stem = hashlib.sha256(common_name.encode()).hexdigest()[:16]
        make_pki(self.root, users={stem: common_name})
        return ProxyCredential.from_files(*self._demo.user(stem))

    def expired_user(self, name: str) -> CertFiles:
        """A user whose certificate ended an hour ago."""
        return issue(self._demo, name, USERS.get(name, name), lifetime=timedelta(hours=-1))

    def write_crl(self, *revoked: str, lifetime: timedelta = timedelta(days=30)) -> None:
        """Install a CRL naming these users; a lifetime below zero gives one that has ended."""
        write_crl(self._demo, [self.user(name).cert for name in revoked], lifetime=lifetime)

    def write_crl_for(self, *certificates: Path) -> None:
        """Install a CRL naming the certificates in these files."""
        write_crl(self._demo, certificates)

    def remove_crl(self) -> None:
        for path in self.ca_dir.glob("*.r0"):
            path.unlink()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Shared by the session: do not revoke in it."""
    return Pki(tmp_path_factory.mktemp("pki"))
