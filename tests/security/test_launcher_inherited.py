"""What a payload has of its caller's process, and what it has not: limits, terminal, session. By socket, sudo, root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from support.launcher import PILOT_UID, TIMEOUT_S, Ran, Site, allow_sudo, make_site

from airpanda_demo.worker_node import INSTALLED

pytestmark = [pytest.mark.root, pytest.mark.integration]

WAYS = {"socket": INSTALLED.glexec, "sudo": INSTALLED.glexec_sudo, "root": INSTALLED.launcher}


@pytest.fixture(scope="module", name="site")
def node_site() -> Iterator[Site]:
    for site in make_site(allow_root="yes"):
        allow_sudo(site)
        yield site


def run(
    site: Site, way: str, command: Sequence[str], *, before: str = ":", around: Sequence[str] = (), stdin: int = -3
) -> Ran:
    """A payload in this way, from a shell that has run ``before``; in no way, where there is none of this name."""
    owner = 0 if way == "root" else PILOT_UID
    proxy = site.put(site.proxy().to_pem().reveal(), uid=owner)
    enter = site.node.root_argv() if way == "root" else [*site.node.enter_argv("pilot"), "env"]
    launcher = [str(WAYS[way])] if way in WAYS else []
    shell = ["/bin/sh", "-c", f'{before}; exec "$@"', "sh", *launcher, *command]
    argv = [*around, *enter, f"GLEXEC_CLIENT_CERT={proxy}", *shell]
    done = subprocess.run(argv, stdin=stdin, capture_output=True, timeout=TIMEOUT_S)
    return Ran(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))


# --- limits: a batch system's hold on what its job starts -------------------------------------------------------------

SHOW = "ulimit -S -f; ulimit -S -n; ulimit -S -t; ulimit -S -v; ulimit -S -s; ulimit -H -t"
LESS = "ulimit -S -f 2000; ulimit -S -n 77; ulimit -S -t 555; ulimit -S -v 9000000; ulimit -S -s 1000; ulimit -H -t 777"


@pytest.mark.parametrize("way", WAYS)
def test_the_callers_limits_are_the_payloads(site: Site, way: str) -> None:
    ran = run(site, way, ["/bin/sh", "-c", SHOW], before=LESS)
    assert ran.code == 0, ran
    if way == "sudo":  # its PAM session has set the soft ones anew before the launcher starts
        assert ran.out.split()[-1] == "777", ran
    else:
        assert ran.out.split() == ["2000", "77", "555", "9000000", "1000", "777"], ran


@pytest.mark.parametrize("way", ["socket", "root"])
def test_a_payload_over_its_callers_limit_is_stopped_by_the_kernel(site: Site, way: str) -> None:
    ran = run(site, way, ["/usr/bin/head", "-c", "300000", "/dev/zero"], before="ulimit -S -f 0")
    assert ran.out == "\0" * 300_000, ran  # a pipe is no file
    write = ["/bin/sh", "-c", "head -c 300000 /dev/zero > /tmp/big; echo $?; wc -c < /tmp/big"]
    ran = run(site, way, write, before="ulimit -S -f 200")
    assert ran.out.split() == ["153", "102400"], ran  # 128 + SIGXFSZ, after 200 blocks of 512 bytes


# --- terminal and session ---------------------------------------------------------------------------------------------

LOOK = """
import fcntl, os, termios
stat = open("/proc/self/stat").read().rpartition(")")[2].split()
pgrp, session, terminal = map(int, stat[2:5])
print("leads", os.getpid() == pgrp == session)
print("terminal", terminal != 0)
for name, attempt in {
    "opened": lambda: os.close(os.open("/dev/tty", os.O_RDWR)),
    "typed": lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"),
    "taken": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 1),
}.items():
    try:
        attempt()
        print(name, True)
    except OSError:
        print(name, False)
print("is one", os.isatty(0))
"""


@pytest.mark.parametrize("way", [*WAYS, "none"])
def test_a_payload_has_a_session_of_its_own_and_no_controlling_terminal(site: Site, way: str) -> None:
    """Though its caller has one and gives it as standard input: else it could type into its caller's shell."""
    ours, theirs = os.openpty()
    try:
        ran = run(site, way, [sys.executable, "-IS", "-c", LOOK], around=["setsid", "-c", "-w"], stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    found = dict(line.rsplit(" ", 1) for line in ran.out.splitlines())
    assert found.pop("is one") == "True", ran
    if way == "none":  # what there is to be kept from a payload
        assert (found["terminal"], found["opened"]) == ("True", "True"), ran
    else:
        assert found == {"leads": "True", "terminal": "False", "opened": "False", "typed": "False", "taken": "False"}
