"""Debian's C clients, and what they leave, against our development server."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from support.myproxy_server import ServerProcess, start_ours
from support.need import need_program
from support.pki import Pki, pki

from airpanda.core.secret import Secret
from airpanda.myproxy.staging import stage
from airpanda.x509 import pem
from airpanda.x509.credential import ProxyCredential

__all__ = ["pki"]
pytestmark = pytest.mark.integration
HOUR = timedelta(hours=1)
PASSPHRASE = "correct horse"


@pytest.fixture(scope="module")
def server(pki: Pki) -> Iterator[ServerProcess]:
    with start_ours(pki) as running:
        yield running


def _run(server: ServerProcess, user: str | None, *args: object, says: str = "", fails: bool = False) -> str:
    argv = [need_program(str(args[0]), "myproxy"), *map(str, args[1:])]
    done = subprocess.run(
        argv,
        input=says,
        env=server.environment(user),
        cwd=server.storage.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_init_logon_info_change_destroy(server: ServerProcess, pki: Pki, tmp_path: Path) -> None:
    _run(server, "alice", "myproxy-init", "-S", "-l", "alice", "-c", "168", "-t", "12", says=PASSPHRASE + "\n")
    out = tmp_path / "proxy"
    _run(server, None, "myproxy-logon", "-S", "-l", "alice", "-o", out, says=PASSPHRASE + "\n")
    assert ProxyCredential.load(out).identity == pki.dn("alice")
    said = _run(server, "alice", "myproxy-info", "-l", "alice")
    assert f"owner: {pki.dn('alice')}" in said
    both = f"{PASSPHRASE}\nbattery staple\n"
    _run(server, "alice", "myproxy-change-pass-phrase", "-S", "-l", "alice", says=both)
    refused = _run(
        server, None, "myproxy-logon", "-S", "-l", "alice", "-o", tmp_path / "x", says=PASSPHRASE + "\n", fails=True
    )
    assert "invalid credential passphrase" in refused
    assert not (tmp_path / "x").exists()
    _run(server, "bob", "myproxy-destroy", "-l", "alice", fails=True)
    _run(server, "alice", "myproxy-destroy", "-l", "alice")
    _run(server, "alice", "myproxy-info", "-l", "alice", fails=True)


def test_trusted_retriever(server: ServerProcess, pki: Pki, tmp_path: Path) -> None:
    arguments = ["-n", "-l", "alice", "-k", "job-42", "-x", "-Z", pki.dn("pilot"), "-c", "24", "-t", "12"]
    _run(server, "alice", "myproxy-init", *arguments)
    out = tmp_path / "proxy"
    _run(server, "pilot", "myproxy-logon", "-n", "-l", "alice", "-k", "job-42", "-o", out)
    assert ProxyCredential.load(out).identity == pki.dn("alice")
    for thief in ("pilot2", "bob", None):
        _run(server, thief, "myproxy-logon", "-n", "-l", "alice", "-k", "job-42", "-o", tmp_path / "x", fails=True)


def test_renewal(server: ServerProcess, pki: Pki, tmp_path: Path) -> None:
    _run(server, "alice", "myproxy-init", "-S", "-l", "alice", "-k", "old", "-t", "12", says=PASSPHRASE + "\n")
    old = tmp_path / "old"
    _run(server, None, "myproxy-logon", "-S", "-l", "alice", "-k", "old", "-o", old, says=PASSPHRASE + "\n")
    arguments = ["-n", "-l", "alice", "-k", "renew", "-x", "-R", pki.dn("pilot"), "-c", "24", "-t", "2"]
    _run(server, "alice", "myproxy-init", *arguments)
    out = tmp_path / "proxy"
    _run(server, "pilot", "myproxy-logon", "-n", "-a", old, "-l", "alice", "-k", "renew", "-o", out)
    assert ProxyCredential.load(out).identity == pki.dn("alice")
    _run(
        server, "bob", "myproxy-logon", "-n", "-a", old, "-l", "alice", "-k", "renew", "-o", tmp_path / "x", fails=True
    )


def test_store_and_retrieve(server: ServerProcess, pki: Pki, tmp_path: Path) -> None:
    cert, key = pki.user("alice")
    encrypted = tmp_path / "key.pem"
    encrypted.write_bytes(pem.encrypted_key_pem(pem.load_key(key.read_bytes()), Secret(PASSPHRASE)))
    encrypted.chmod(0o600)
    arguments = ["-c", cert, "-y", encrypted, "-l", "alice", "-k", "eec", "-x", "-E", pki.dn("bob")]
    _run(server, "alice", "myproxy-store", *arguments)
    got = [tmp_path / "c", tmp_path / "k"]
    arguments = ["-S", "-l", "alice", "-k", "eec", "-c", got[0], "-y", got[1]]
    _run(server, "bob", "myproxy-retrieve", *arguments, says=PASSPHRASE + "\n")
    assert ProxyCredential.from_files(*got, Secret(PASSPHRASE)).identity == pki.dn("alice")


def test_a_staged_proxy_is_for_the_c_client_too(server: ServerProcess, pki: Pki, tmp_path: Path) -> None:
    alice = server.client("alice")
    assert alice.credential is not None
    staged = stage(alice, alice.credential, retriever_dn=pki.dn("pilot"), lifetime=HOUR)
    arguments = ["-S", "-l", staged.username, "-k", staged.cred_name, "-o"]
    says = staged.passphrase.reveal() + "\n"
    _run(server, "pilot", "myproxy-logon", *arguments, tmp_path / "proxy", says=says)
    assert ProxyCredential.load(tmp_path / "proxy").identity == pki.dn("alice")
    for thief in ("pilot2", None):
        _run(server, thief, "myproxy-logon", *arguments, tmp_path / "x", says=says, fails=True)
    assert not (tmp_path / "x").exists()


def test_trust_roots_for_who_has_none(server: ServerProcess, pki: Pki, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**server.environment(None), "X509_CERT_DIR": str(empty), "HOME": str(tmp_path)}
    argv = [need_program("myproxy-get-trustroots", "myproxy"), "-b"]
    subprocess.run(argv, env=environment, check=True, capture_output=True, timeout=60)
    assert {path.name for path in pki.ca_dir.iterdir()} <= {path.name for path in empty.iterdir()}


def test_sigterm_ends_the_server_and_the_store_survives(pki: Pki, tmp_path: Path) -> None:
    with start_ours(pki, "accepted_credentials '*'\nauthorized_retrievers '*'\n") as running:
        running.client("alice").put("alice", Secret(PASSPHRASE), lifetime=HOUR)
        os.kill(running.pid, signal.SIGTERM)
    # the fixture has checked: exit code 0, no traceback


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("allowed_everything *\n", "config:1"),
        ("accepted_credentials\n", "config:1"),
        ("max_proxy_lifetime -1\n", "more than 0"),
        ("authorized_retrievers '(a|b)'\n", "backslash"),
        ("accepted_credentials 'open\n", "config:1"),
    ],
)
def test_a_wrong_configuration_is_named(pki: Pki, config: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words), start_ours(pki, config):
        pass


def test_a_store_open_to_others_is_refused(pki: Pki, tmp_path: Path) -> None:
    open_store = tmp_path / "open"
    open_store.mkdir(mode=0o755)
    with (
        pytest.raises(AssertionError, match="0700"),
        start_ours(pki, "accepted_credentials '*'", "--storage", str(open_store)),
    ):
        pass
