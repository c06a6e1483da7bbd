"""Our proxies in the field's tools, and their proxies in ours: Globus, VOMS, OpenSSL."""

from __future__ import annotations

import os
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from support import chains
from support.need import need_program
from support.pki import Pki, pki

from airpanda.core.clock import utcnow
from airpanda.x509 import pem
from airpanda.x509.chain import verify_chain
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.dn import subject_dn
from airpanda.x509.errors import ChainError
from airpanda.x509.proxy import create_proxy
from airpanda.x509.trust import TrustStore

__all__ = ["pki"]
pytestmark = pytest.mark.integration
HOUR = timedelta(hours=1)


def _run(program: str, package: str, *args: object, pki: Pki, check: bool = True) -> str:
    argv = [need_program(program, package), *map(str, args)]
    environment = {"PATH": os.defpath, "HOME": str(pki.root), "X509_CERT_DIR": str(pki.ca_dir)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if check:
        assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


def _grid_proxy_init(pki: Pki, out: Path, *options: str) -> ProxyCredential:
    cert, key = pki.user("alice")
    arguments = ["-q", "-cert", cert, "-key", key, "-certdir", pki.ca_dir, "-bits", "2048", "-out", out, *options]
    _run("grid-proxy-init", "globus-proxy-utils", *arguments, pki=pki)
    return ProxyCredential.load(out)


@pytest.mark.parametrize(("options", "limited"), [((), False), (("-limited",), True), (("-path-length", "3"), False)])
def test_we_accept_what_globus_makes(pki: Pki, tmp_path: Path, options: tuple[str, ...], limited: bool) -> None:
    proxy = _grid_proxy_init(pki, tmp_path / "proxy", *options)
    verified = verify_chain(proxy.certificates, trust=TrustStore.from_directory(pki.ca_dir), now=utcnow())
    assert (verified.identity_dn, verified.limited) == (pki.dn("alice"), limited)
    below = create_proxy(proxy, lifetime=HOUR, now=utcnow())
    again = verify_chain(below.certificates, trust=TrustStore.from_directory(pki.ca_dir), now=utcnow())
    assert (again.identity_dn, again.limited, len(again.proxies)) == (pki.dn("alice"), limited, 2)


def test_a_chain_of_two_end_entities_by_globus_is_refused(pki: Pki, tmp_path: Path) -> None:
    proxy = _grid_proxy_init(pki, tmp_path / "proxy")
    bob = pem.load_certificates(pki.user("bob").cert.read_bytes())
    with pytest.raises(ChainError):
        verify_chain([proxy.certificate, *bob], trust=TrustStore.from_directory(pki.ca_dir), now=utcnow())


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("limited", [False, True])
def test_globus_and_voms_accept_what_we_make(pki: Pki, tmp_path: Path, depth: int, limited: bool) -> None:
    proxy = ProxyCredential.from_files(*pki.user("alice"))
    for _ in range(depth):
        proxy = create_proxy(proxy, lifetime=HOUR, now=utcnow(), limited=limited)
    proxy.write(tmp_path / "proxy")
    said = _run("grid-proxy-info", "globus-proxy-utils", "-file", tmp_path / "proxy", pki=pki)
    assert f"identity : {pki.dn('alice')}" in said
    assert ("limited" in said) == limited
    voms = _run("voms-proxy-info", "voms-clients", "-file", tmp_path / "proxy", "-all", pki=pki)
    assert f"identity  : {pki.dn('alice')}" in voms or f"issuer    : {pki.dn('alice')}" in voms
    if not limited:  # OpenSSL's own view of the same chain
        leaf, rest = tmp_path / "leaf.pem", tmp_path / "rest.pem"
        leaf.write_bytes(pem.certificates_pem([proxy.certificate]))
        rest.write_bytes(pem.certificates_pem(proxy.chain))
        options = ["verify", "-allow_proxy_certs", "-CApath", pki.ca_dir, "-untrusted", rest, leaf]
        assert "OK" in _run("openssl", "openssl", *options, pki=pki)


@pytest.mark.parametrize("text", ["Jürgen Müller", "a/b, c+d=e", 'quo"ted', "Robot: x", "日本", " two  spaces "])
def test_one_line_names_as_openssl_prints_them(pki: Pki, tmp_path: Path, text: str) -> None:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "org"),
            x509.NameAttribute(NameOID.USER_ID, "u1"),
            x509.NameAttribute(NameOID.GIVEN_NAME, "g"),
            x509.NameAttribute(NameOID.SURNAME, "s"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, "7"),
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.example"),
            x509.NameAttribute(NameOID.COMMON_NAME, text),
        ]
    )
    certificate = chains.make(subject, chains.ec_key("dn")).cert
    path = tmp_path / "cert.pem"
    path.write_bytes(pem.certificates_pem([certificate]))
    printed = _run("openssl", "openssl", "x509", "-noout", "-subject", "-nameopt", "compat", "-in", path, pki=pki)
    printed = printed.removeprefix("subject=").removesuffix("\n").replace("\\/", "/").replace("\\+", "+")
    assert printed == subject_dn(certificate)
