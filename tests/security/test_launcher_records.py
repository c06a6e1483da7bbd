"""No payload without a record: full disks, tight limits, killed launchers, callers who are refused."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import ALICE_UID, PILOT_UID, Ran, Site, make_site, wait_for

from airpanda_demo.worker_node import INSTALLED, LOG

pytestmark = [pytest.mark.root, pytest.mark.integration]


CAP_SYS_RESOURCE = 1 << 24


@pytest.fixture(scope="module", name="site")
def node_site() -> Iterator[Site]:
    yield from make_site()


def direct(site: Site, limits: str, script: str) -> Ran:
    """As sudo starts the launcher, in a process that has lowered its limits."""
    variables = {
        "GLEXEC_CLIENT_CERT": str(site.put_proxy()),
        "GLEXEC_TARGET_PROXY": "/dev/null",
        "SUDO_UID": str(PILOT_UID),
        "SUDO_GID": str(PILOT_UID),
    }
    words = [f"{name}={value}" for name, value in variables.items()]
    start = f'{limits}; exec {INSTALLED.launcher} "$@"'
    command = [*site.node.root_argv(), *words, "/bin/sh", "-c", start, "sh", "/bin/sh", "-c", script]
    done = subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    return Ran(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))


def test_limits_of_the_caller_keep_no_record_away(site: Site) -> None:
    before = len(site.node.records())
    ran = direct(
        site, "ulimit -S -f 0; ulimit -S -n 64; ulimit -S -t 50", "id -u; ulimit -S -f; ulimit -S -n; ulimit -S -t"
    )
    assert (ran.code, ran.out) == (0, f"{ALICE_UID}\n0\n64\n50\n"), ran
    assert len(site.node.records()) == before + 1
    assert site.last_record()["uid"] == ALICE_UID


def test_hard_limits_are_lifted_or_nothing_runs(site: Site) -> None:
    """Root without CAP_SYS_RESOURCE cannot write its record then."""
    capable = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16) & CAP_SYS_RESOURCE
    before = len(site.node.records())
    ran = direct(site, "ulimit -f 0", "id -u; ulimit -H -f")
    if capable:
        assert (ran.code, ran.out) == (0, f"{ALICE_UID}\n0\n"), ran
        assert len(site.node.records()) == before + 1
    else:
        assert (ran.code, ran.out) == (202, ""), ran
        assert "nothing may run" in ran.err


def test_a_run_is_recorded_before_it_starts(site: Site) -> None:
    """Its end is not, where the launcher itself is killed: then the start is all there is, and it says who ran."""
    before = len(site.node.events())
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy()), "GLEXEC_ID": "killed"}
    process = site.start(site.glexec, "/bin/sleep", "601", env=env, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: site.processes(ALICE_UID))
        (event,) = site.node.events()[before:]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert (event["event"], event["id"], event["uid"]) == ("started", "killed", ALICE_UID)
    assert event["dn"] == site.pki.dn("alice")
    assert "rc" not in event
    wait_for(lambda: len(site.node.events()) == before + 2)
    assert site.last_record()["rc"] == 137
    assert "event" not in site.last_record()


def as_root(site: Site, script: str) -> None:
    subprocess.run([*site.node.root_argv(), "/bin/sh", "-ec", script], check=True, timeout=30)


@pytest.fixture(name="small")
def _small(site: Site) -> Iterator[Path]:
    """The log's directory, small enough to be filled."""
    as_root(site, f"mount -t tmpfs -o size=64k,mode=755 none {LOG.parent}")
    yield LOG.parent
    as_root(site, f"umount {LOG.parent}")


def test_a_full_disk_stops_new_payloads_and_loses_no_outcome(site: Site, small: Path) -> None:
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy()), "GLEXEC_ID": "outcome"}
    process = site.start(site.glexec, "/bin/sh", "-c", "read x; exit 3", env=env, stdin=subprocess.PIPE)
    wait_for(site.node.events)
    as_root(site, f"cat /dev/zero > {small}/fill 2>&- || tr '\\0' '\\n' < /dev/zero >> {LOG} 2>&- || true")
    before = site.read(LOG)
    process.communicate(b"\n", timeout=60)
    ran = site.glexec_run("/bin/sh", "-c", "echo it ran")
    assert process.returncode == 3
    assert (ran.code, ran.out) == (202, "")
    assert "nothing may run" in ran.err
    assert site.read(LOG) == before
    told = (site.node.directory / "node.log").read_text()
    assert 'id="outcome"' in told
    assert "rc=3" in told


def test_a_caller_who_is_refused_is_recorded(site: Site) -> None:
    before = len(site.node.records())
    ran = site.run(site.glexec, "/usr/bin/id", env={"GLEXEC_CLIENT_CERT": "/x"}, account="other")
    assert (ran.code, ran.out) == (203, "")
    (record,) = site.node.records()[before:]
    assert (record["caller"], record["rc"], record["identity_switched"]) == ("other", 203, False)
    assert "not among the callers" in str(record["reason"])
