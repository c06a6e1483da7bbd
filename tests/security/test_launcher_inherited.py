"""What a payload has of its caller's process: limits. By socket, sudo, root."""

from __future__ import annotations

import os
import subprocess
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


def run(site: Site, way: str, command: Sequence[str], *, before: str = ":") -> Ran:
    """A payload in this way, from a shell that has run ``before``; in no way, where there is none of this name."""
    owner = 0 if way == "root" else PILOT_UID
    proxy = site.put(site.proxy().to_pem().reveal(), uid=owner)
    enter = site.node.root_argv() if way == "root" else [*site.node.enter_argv("pilot"), "env"]
    launcher = [str(WAYS[way])] if way in WAYS else []
    shell = ["/bin/sh", "-c", f'{before}; exec "$@"', "sh", *launcher, *command]
    argv = [*enter, f"GLEXEC_CLIENT_CERT={proxy}", *shell]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
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
