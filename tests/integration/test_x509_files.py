"""Credential files and CA directories on disk."""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from support.pki import Pki

from airpanda.core.clock import utcnow
from airpanda.core.errors import ConfigurationError
from airpanda.core.secret import Secret
from airpanda.x509 import pem
from airpanda.x509.chain import verify_chain
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.errors import CredentialFileError, RefusedChainError
from airpanda.x509.proxy import create_proxy
from airpanda.x509.trust import TrustDirectory, TrustStore


@pytest.fixture
def own(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
def proxy_file(own: Pki, tmp_path: Path) -> Path:
    path = tmp_path / "proxy"
    _proxy(own).write(path)
    return path


def _proxy(own: Pki, user: str = "alice") -> ProxyCredential:
    issuer = ProxyCredential.from_files(*own.user(user))
    return create_proxy(issuer, lifetime=timedelta(hours=1), now=utcnow())


def test_unfit_files(proxy_file: Path, tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(proxy_file)
    os.mkfifo(pipe)
    for path in (tmp_path / "missing", link, pipe, tmp_path, Path("/dev/null")):
        with pytest.raises(CredentialFileError):
            ProxyCredential.load(path)
    for mode in (0o640, 0o604, 0o4600, 0o660):
        proxy_file.chmod(mode)
        with pytest.raises(CredentialFileError, match="chmod 600"):
            ProxyCredential.load(proxy_file)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: changing an owner needs root")
def test_another_accounts_file(proxy_file: Path) -> None:
    os.chown(proxy_file, 65534, 65534)
    with pytest.raises(CredentialFileError, match="another account"):
        ProxyCredential.load(proxy_file)


def test_written_files_are_private_and_replace_whole(own: Pki, proxy_file: Path) -> None:
    assert stat.S_IMODE(proxy_file.stat().st_mode) == 0o600
    before = ProxyCredential.load(proxy_file)
    assert before.identity == own.dn("alice")
    _proxy(own, "bob").write(proxy_file)
    assert ProxyCredential.load(proxy_file).identity == own.dn("bob")
    assert [path.name for path in proxy_file.parent.iterdir() if "proxy" in path.name] == ["proxy"]


def test_nothing_is_left_when_the_target_cannot_be_replaced(own: Pki, tmp_path: Path) -> None:
    target = tmp_path / "directory"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(CredentialFileError, match="cannot be written"):
        _proxy(own).write(target)
    assert not list(tmp_path.glob(".directory*"))
    with pytest.raises(CredentialFileError, match="cannot be written"):
        _proxy(own).write(tmp_path / "missing" / "proxy")


def test_a_users_key_may_be_protected(own: Pki, tmp_path: Path) -> None:
    cert, plain = own.user("alice")
    key = pem.load_key(plain.read_bytes())
    protected = tmp_path / "userkey.pem"
    protected.write_bytes(pem.encrypted_key_pem(key, Secret("a passphrase")))
    protected.chmod(0o400)
    assert ProxyCredential.from_files(cert, protected, Secret("a passphrase")).identity == own.dn("alice")
    with pytest.raises(CredentialFileError, match="none was given"):
        ProxyCredential.from_files(cert, protected)
    with pytest.raises(CredentialFileError, match="does not belong"):
        ProxyCredential.from_files(own.user("bob").cert, plain)


def test_a_directory_with_crl_and_policy(own: Pki) -> None:
    proxy = _proxy(own)
    own.write_crl("bob")
    trust = TrustStore.from_directory(own.ca_dir)
    assert verify_chain(proxy.certificates, trust=trust, now=utcnow()).identity_dn == own.dn("alice")
    with pytest.raises(RefusedChainError, match="revoked"):
        verify_chain(_proxy(own, "bob").certificates, trust=trust, now=utcnow())
    own.write_crl(lifetime=timedelta(hours=-1))
    with pytest.raises(RefusedChainError, match="not current"):
        verify_chain(proxy.certificates, trust=TrustStore.from_directory(own.ca_dir), now=utcnow())


def test_one_of_two_policies_that_forbids_is_enough(own: Pki) -> None:
    path = sorted(own.ca_dir.glob("*.signing_policy"))[0]
    path.write_text(path.read_text().replace("/O=Test Grid/*", "/O=Other/*"))
    with pytest.raises(RefusedChainError, match="may not certify"):
        verify_chain(_proxy(own).certificates, trust=TrustStore.from_directory(own.ca_dir), now=utcnow())


def test_the_name_of_the_file_does_not_matter(own: Pki) -> None:
    for path in list(own.ca_dir.iterdir()):
        path.rename(own.ca_dir / f"{int(path.name[:8], 16) ^ 1:08x}{path.suffix}")
    trust = TrustStore.from_directory(own.ca_dir)
    assert verify_chain(_proxy(own).certificates, trust=trust, now=utcnow()).identity_dn == own.dn("alice")


@pytest.mark.parametrize(("suffix", "text"), [("0", "garbage"), ("r0", "garbage"), ("signing_policy", "garbage")])
def test_a_broken_file_is_named(own: Pki, suffix: str, text: str) -> None:
    path = sorted(own.ca_dir.glob("*.0"))[0].with_suffix(f".{suffix}")
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=path.name):
        TrustStore.from_directory(own.ca_dir)


def test_no_directory_and_an_empty_one(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigurationError):
            TrustStore.from_directory(path)


def test_a_directory_that_vanishes_ends_trust(own: Pki) -> None:
    directory = TrustDirectory(own.ca_dir, max_age_s=0.0)
    assert directory.current() is not directory.current()
    assert TrustDirectory(own.ca_dir).current() is not None
    kept = TrustDirectory(own.ca_dir)
    assert kept.current() is kept.current()
    own.ca_dir.rename(own.root / "elsewhere")
    with pytest.raises(ConfigurationError):
        directory.current()
