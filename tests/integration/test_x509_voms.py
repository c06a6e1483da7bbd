"""VOMS attributes, made by voms-proxy-fake."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from support.need import need_program
from support.pki import Pki, pki

from airpanda.core.clock import utcnow
from airpanda.core.errors import ConfigurationError
from airpanda.core.identity import Fqan
from airpanda.x509.chain import verify_chain
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.errors import VomsError
from airpanda.x509.proxy import create_proxy
from airpanda.x509.trust import TrustStore
from airpanda.x509.voms import VomsAttributes, VomsDirectory, attribute_certificates, verify_attributes

__all__ = ["pki"]
pytestmark = pytest.mark.integration
HOUR = timedelta(hours=1)
FQANS = ("/testvo/Role=pilot", "/testvo/group")


@pytest.fixture(scope="module")
def voms_proxy(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> ProxyCredential:
    out = tmp_path_factory.mktemp("voms") / "proxy"
    cert, key = pki.user("alice")
    argv = [need_program("voms-proxy-fake", "voms-clients"), "-cert", cert, "-key", key, "-certdir", pki.ca_dir]
    argv += ["-hostcert", pki.host().cert, "-hostkey", pki.host().key, "-voms", "testvo", "-uri", "localhost:15000"]
    for fqan in FQANS:
        argv += ["-fqan", fqan]
    argv += ["-rfc", "-newformat", "-bits", "2048", "-hours", "12", "-vomslife", "6", "-path-length", "4", "-out", out]
    environment = {"PATH": os.defpath, "HOME": str(pki.root), "X509_CERT_DIR": str(pki.ca_dir)}
    subprocess.run(list(map(str, argv)), env=environment, check=True, capture_output=True, timeout=60)
    return ProxyCredential.load(out)


def _lsc(pki: Pki) -> Mapping[str, list[tuple[str, ...]]]:
    return {"testvo": [(pki.dn("host"), pki.dn("ca"))]}


def _verify(pki: Pki, proxy: ProxyCredential, **changes: object) -> tuple[VomsAttributes, ...]:
    arguments: dict[str, object] = {
        "vomsdir": VomsDirectory(_lsc(pki)),
        "trust": TrustStore.from_directory(pki.ca_dir),
        "now": utcnow(),
        **changes,
    }
    return verify_attributes(proxy.certificates, **arguments)  # type: ignore[arg-type]


def test_attributes_of_a_proxy_and_of_proxies_below_it(pki: Pki, voms_proxy: ProxyCredential) -> None:
    trust = TrustStore.from_directory(pki.ca_dir)
    below = create_proxy(create_proxy(voms_proxy, lifetime=HOUR, now=utcnow()), lifetime=HOUR, now=utcnow())
    for proxy in (voms_proxy, below):
        assert verify_chain(proxy.certificates, trust=trust, now=utcnow()).identity_dn == pki.dn("alice")
        (found,) = _verify(pki, proxy)
        assert (found.vo, found.issuer_dn) == ("testvo", pki.dn("host"))
        assert found.fqans == tuple(map(Fqan.parse, FQANS))
        assert timedelta(hours=5) < found.not_after - utcnow() <= timedelta(hours=6)


def test_a_plain_proxy_has_none(pki: Pki) -> None:
    alice = ProxyCredential.from_files(*pki.user("alice"))
    assert _verify(pki, create_proxy(alice, lifetime=HOUR, now=utcnow())) == ()


@pytest.mark.parametrize("hours", [7, -7])
def test_the_attributes_end_by_themselves(pki: Pki, voms_proxy: ProxyCredential, hours: int) -> None:
    with pytest.raises(VomsError, match="renew them"):
        _verify(pki, voms_proxy, now=utcnow() + timedelta(hours=hours))


@pytest.mark.parametrize("vo", ["testvo", "othervo"])
def test_a_server_that_may_not_speak_for_the_vo(pki: Pki, voms_proxy: ProxyCredential, vo: str) -> None:
    for entry in [(pki.dn("host"),), (pki.dn("bob"), pki.dn("ca")), (pki.dn("ca"), pki.dn("host"))]:
        with pytest.raises(VomsError, match="may not speak for testvo"):
            _verify(pki, voms_proxy, vomsdir=VomsDirectory({vo: [entry]}))


def test_attributes_of_another_person(pki: Pki, voms_proxy: ProxyCredential) -> None:
    bob = ProxyCredential.from_files(*pki.user("bob"))
    with pytest.raises(VomsError, match="another certificate"):
        verify_attributes(
            [voms_proxy.certificate, bob.certificate],
            vomsdir=VomsDirectory(_lsc(pki)),
            trust=TrustStore.from_directory(pki.ca_dir),
            now=utcnow(),
        )


def test_a_server_of_another_ca(pki: Pki, voms_proxy: ProxyCredential, tmp_path: Path) -> None:
    other = Pki(tmp_path / "pki")
    with pytest.raises(VomsError, match="is not trusted"):
        _verify(pki, voms_proxy, trust=TrustStore.from_directory(other.ca_dir))


def test_a_changed_signature(pki: Pki, voms_proxy: ProxyCredential, monkeypatch: pytest.MonkeyPatch) -> None:
    (ac,) = attribute_certificates(voms_proxy.certificates)
    forged = ac.__class__(**{**vars(ac), "signed": ac.signed.replace(b"Role=pilot", b"Role=admin")})
    monkeypatch.setattr("airpanda.x509.voms.attribute_certificates", lambda _chain: (forged,))
    with pytest.raises(VomsError, match="signature"):
        _verify(pki, voms_proxy)


def test_a_vomsdir_on_disk(pki: Pki, voms_proxy: ProxyCredential, tmp_path: Path) -> None:
    (tmp_path / "testvo").mkdir()
    (tmp_path / "testvo" / "localhost.lsc").write_text(f"# server\n{pki.dn('host')}\n{pki.dn('ca')}\n")
    assert _verify(pki, voms_proxy, vomsdir=VomsDirectory.from_directory(tmp_path))
    with pytest.raises(ConfigurationError):
        VomsDirectory.from_directory(tmp_path / "missing")
