"""No payload without a record: full disks, tight limits, killed launchers, callers who are refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
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


# A /dev of the node's own: what is put into the usual one would be this machine's. /run/dev is not "nodev".
DEV = """
mkdir /run/dev
mount -t tmpfs -o mode=0755 dev /run/dev
mkdir /run/dev/shm
for name in null zero full random urandom tty; do cp -a /dev/$name /run/dev; done
mount --move /run/dev /dev
"""


@pytest.fixture(name="syslog")
def _syslog(site: Site) -> Iterator[socket.socket]:
    """What the node's C library takes for syslog's daemon; and the site wants its records there."""
    config = site.node.path(INSTALLED.config)
    before = config.read_text()
    as_root(site, DEV)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        place = site.node.path(Path("/dev/log"))
        daemon.bind(str(place))
        place.chmod(0o666)
        daemon.settimeout(20)
        config.write_text(re.sub("(?m)^syslog = no$", "syslog = yes", before))
        yield daemon
    config.write_text(before)
    as_root(site, "umount -l /dev; rmdir /run/dev")


def told(daemon: socket.socket) -> dict[str, str]:
    """The next message, which must be one line of the launcher's, as a parser of key=value reads it."""
    text = daemon.recv(65536).rstrip(b"\0").decode()
    begin = re.match(r"<85>\w{3} [ \d]\d \d\d:\d\d:\d\d airpanda-glexec\[\d+\]: ", text)  # authpriv.notice
    assert begin, text
    assert text.isprintable(), "all of it on one line"
    pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', text[begin.end() :])
    return {name: str(json.loads(value)) if value[0] == '"' else value for name, value in pairs}


@pytest.mark.parametrize("way", ["socket", "direct"])
def test_syslog_gets_the_start_and_the_end_of_each_run_on_a_line_each(
    site: Site, syslog: socket.socket, way: str
) -> None:
    hostile = 'x\n<0>forged: uid=0 rc=0 user="root'
    if way == "socket":
        env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy()), "GLEXEC_ID": hostile}
        assert site.run(site.glexec, "/bin/sh", "-c", "exit 3", env=env).code == 3
    else:
        assert direct(site, ":", "exit 3").code == 3
    start, end = told(syslog), told(syslog)
    assert (start["event"], start["uid"], start["dn"]) == ("started", str(ALICE_UID), site.pki.dn("alice"))
    assert "rc" not in start
    assert (end["rc"], end["uid"], end["user"], end["identity_switched"]) == ("3", str(ALICE_UID), "alice", "true")
    assert {"wall", "cpu", "maxrss_kb", "issuer", "serial", "fingerprint", "caller", "launcher"} <= set(end)
    assert end["id"] == (hostile if way == "socket" else "")
    assert site.glexec_run("/usr/bin/id", proxy=site.put_proxy("carol")).code == 203
    refused = told(syslog)
    assert (refused["rc"], refused["identity_switched"], refused["dn"]) == ("203", "false", site.pki.dn("carol"))
    syslog.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        raise AssertionError(f"one more: {syslog.recv(65536)!r}")
