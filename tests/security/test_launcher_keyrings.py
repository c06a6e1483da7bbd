"""Keys that the kernel keeps: nothing of the launcher's session for a payload, nothing of a uid's former owner."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from support.keys import KEYS, PERSISTENT, SESSION, USER, USER_SESSION, need_keyrings
from support.launcher import ALICE_UID, PILOT_UID, Site, make_site
from support.launcher_mappings import LEASES, mapped

from airpanda_demo.worker_node import INSTALLED

pytestmark = [pytest.mark.root, pytest.mark.integration]

NO_PROXY = {"GLEXEC_TARGET_PROXY": "/dev/null"}


@pytest.fixture(scope="module", name="site")
def node_site() -> Iterator[Site]:
    need_keyrings()
    yield from make_site()


def test_a_payload_has_a_session_keyring_of_its_own(site: Site) -> None:
    """A launcher that sudo starts is in its caller's session, with the caller's keys."""
    variables = [f"GLEXEC_CLIENT_CERT={site.put_proxy()}", f"SUDO_UID={PILOT_UID}", f"SUDO_GID={PILOT_UID}"]
    look = [sys.executable, "-c", KEYS, "get", SESSION]
    for launcher, wanted in (([], "found\nfound\n"), ([INSTALLED.launcher], "found\nnone\n")):
        command = [*site.node.root_argv(), *variables, sys.executable, "-c", KEYS, "join", SESSION]
        start = ["/usr/bin/env", *map(str, launcher), *look]
        done = subprocess.run([*command, *start], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, wanted), done


def test_a_payload_can_use_its_keyring(site: Site) -> None:
    assert site.glexec_run(sys.executable, "-c", KEYS, "put", SESSION).out == "found\n"


def test_keys_of_a_uids_former_owner_are_gone() -> None:
    need_keyrings()
    with mapped("dynamic", uid_range=f"{ALICE_UID}-{ALICE_UID}") as site:
        alice, bob = site.put_proxy("alice"), site.put_proxy("bob")
        for keyring in (USER, USER_SESSION, PERSISTENT):
            put = site.glexec_run(sys.executable, "-c", KEYS, "put", keyring, proxy=alice, env=NO_PROXY)
            kept = site.glexec_run(sys.executable, "-c", KEYS, "get", keyring, proxy=alice, env=NO_PROXY)
            assert (put.out, kept.out) == ("found\n", "found\n"), (keyring, put, kept)
            forget(site)
            other = site.glexec_run(sys.executable, "-c", KEYS, "get", keyring, proxy=bob, env=NO_PROXY)
            assert (other.code, other.out) == (0, "none\n"), (keyring, other)
            assert site.last_record()["uid"] == ALICE_UID
            forget(site)


def forget(site: Site) -> None:
    """Let all leases be idle for long."""
    for path in site.node.path(LEASES).iterdir():
        os.utime(path, (time.time() - 7200,) * 2)
