"""The demonstration PKI, judged by OpenSSL."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

from support.need import need_program
from support.pki import Pki

from airpanda_demo.pki import make_pki


def _openssl(*args: object) -> str:
    argv = [need_program("openssl", "openssl"), *map(str, args)]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout


def test_openssl_finds_the_ca_by_both_hashes(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    for option in ("-subject_hash", "-subject_hash_old"):
        name = _openssl("x509", "-noout", option, "-in", pki.ca.cert).strip()
        assert (pki.ca_dir / f"{name}.0").read_bytes() == pki.ca.cert.read_bytes()
        assert (pki.ca_dir / f"{name}.signing_policy").exists()


def test_certificates_verify_strictly_and_keys_are_private(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    alice, host = pki.user("alice"), pki.host()
    output = _openssl("verify", "-x509_strict", "-CApath", pki.ca_dir, alice.cert, host.cert)
    assert output.count(": OK") == 2
    assert stat.S_IMODE(alice.key.stat().st_mode) == 0o600


def test_a_repeat_changes_nothing_and_adds_who_is_missing(tmp_path: Path) -> None:
    first = make_pki(tmp_path, users={"alice": "Alice Example"})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    make_pki(tmp_path, users={"alice": "Alice Example", "bob": "Bob Example"})
    assert {path: path.read_bytes() for path in before} == before
    assert first.dn("bob") == "/O=Test Grid/CN=Bob Example"


def test_openssl_refuses_who_is_on_the_revocation_list(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    pki.write_crl("alice")
    argv = ["openssl", "verify", "-crl_check", "-CApath", str(pki.ca_dir)]
    alice = subprocess.run([*argv, pki.user("alice").cert], capture_output=True, text=True, timeout=30, check=False)
    bob = subprocess.run([*argv, pki.user("bob").cert], capture_output=True, text=True, timeout=30, check=False)
    assert "certificate revoked" in alice.stderr
    assert bob.returncode == 0
