"""NorduGrid's ``arcproxy``, a third implementation: its proxies in ours, and ours in it.

Its MyProxy client is left out: with ``-M`` it insists on a VOMS server, which no test here has.
"""

from __future__ import annotations

import os
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from support.need import need_program
from support.pki import Pki, pki

from airpanda.core.clock import utcnow
from airpanda.x509.chain import verify_chain
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy
from airpanda.x509.trust import TrustStore

__all__ = ["pki"]
pytestmark = pytest.mark.integration
HOUR = timedelta(hours=1)


def arcproxy(pki: Pki, *arguments: object) -> str:
    argv = [need_program("arcproxy", "nordugrid-arc-client"), "-T", str(pki.ca_dir), *map(str, arguments)]
    environment = {"PATH": os.defpath, "HOME": str(pki.root), "X509_CERT_DIR": str(pki.ca_dir)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def identity(pki: Pki, path: Path) -> str:
    """Whose proxy it is, by our verification."""
    proxy = ProxyCredential.load(path)
    return verify_chain(proxy.certificates, trust=TrustStore.from_directory(pki.ca_dir), now=utcnow()).identity_dn


def test_ours_accepts_its_proxy(pki: Pki, tmp_path: Path) -> None:
    cert, key = pki.user("alice")
    arcproxy(pki, "-C", cert, "-K", key, "-P", tmp_path / "p", "-c", "validityPeriod=2H", "-c", "keybits=2048")
    assert identity(pki, tmp_path / "p") == pki.dn("alice")


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("limited", [False, True])
def test_it_accepts_our_proxy(pki: Pki, tmp_path: Path, depth: int, limited: bool) -> None:
    proxy = ProxyCredential.from_files(*pki.user("alice"))
    for _ in range(depth):
        proxy = create_proxy(proxy, lifetime=3 * HOUR, now=utcnow(), limited=limited)
    proxy.write(tmp_path / "p")
    shown = arcproxy(pki, "-I", "-P", tmp_path / "p")
    assert f"Identity: {pki.dn('alice')}\n" in shown
    assert f"Subject: {proxy.subject_dn}\n" in shown
    assert ("restricted" in shown) is limited
    assert "2 hours 59 minutes" in shown
