"""The shipped units under a real systemd, put in place as ``install`` says: by them the launcher's service comes."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.launcher import ALICE_UID, PLUGINS, Ran, Site, make_site, wait_for
from support.systemd import Systemd, running_systemd

from airpanda.glexec.install import Installed
from airpanda_demo.worker_node import GRID_SECURITY

pytestmark = [pytest.mark.root, pytest.mark.integration]

UNITS = Installed(Path("/run/by units"), Path("/run/units.socket"))
LOG = Path("/run/units-log/log")
INSTALL = f"import sys; sys.path.insert(0, {str(PLUGINS)!r}); from airpanda.glexec.cli import main; main(sys.argv[1:])"
SERVICE, SOCKET = "airpanda-glexec.service", "airpanda-glexec.socket"


@dataclass(frozen=True)
class Served:
    """The node, and the systemd by which its launcher comes."""

    site: Site
    systemd: Systemd

    def run(self, script: str, account: str = "pilot") -> Ran:
        env = {"GLEXEC_CLIENT_CERT": str(self.site.put_proxy())}
        return self.site.run(str(UNITS.glexec), "/bin/sh", "-c", script, env=env, account=account)

    def start(self, marker: str) -> subprocess.Popen[bytes]:
        """A payload that runs until it is ended."""
        command = [str(UNITS.glexec), "/bin/sh", "-c", f": {marker}; sleep 600 & sleep 600"]
        env = {"GLEXEC_CLIENT_CERT": str(self.site.put_proxy()), "GLEXEC_ID": marker}
        process = self.site.start(*command, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_for(lambda: len(self.site.processes(ALICE_UID)) >= 3)
        return process

    def state(self, unit: str) -> str:
        return self.systemd.ctl("is-active", unit).out.strip()


@pytest.fixture(scope="module", name="served")
def _served() -> Iterator[Served]:
    """A node with another installation, whose units systemd has."""
    for site in make_site():
        site.node.path(LOG.parent).mkdir(mode=0o755)
        options = {"prefix": UNITS.prefix, "socket": UNITS.socket, "log-file": LOG, "caller": "pilot"}
        options |= {"ca-dir": GRID_SECURITY / "certificates", "mapfile": GRID_SECURITY / "grid-mapfile"}
        words = [f"--{name}={value}" for name, value in {**options, "python": "/usr/bin/python3"}.items()]
        installed = site.as_root(sys.executable, "-I", "-c", INSTALL, "install", "--set", "syslog=no", *words)
        assert installed.code == 0, installed
        (said,) = [line for line in installed.out.splitlines() if line.startswith(" with systemd ")]
        put, _, enable = said.removeprefix(" with systemd ").partition(" && systemctl ")
        assert site.as_root("/bin/sh", "-c", put).code == 0, put
        with running_systemd(site) as systemd:
            done = systemd.ctl(*enable.split())
            assert done.code == 0, done
            yield Served(site, systemd)


def test_the_service_starts_with_the_first_request_and_runs_it_as_its_owner(served: Served) -> None:
    assert served.systemd.ctl("stop", SERVICE).code == 0
    assert (served.state(SOCKET), served.state(SERVICE)) == ("active", "inactive")
    place = served.site.node.path(UNITS.socket).stat()
    assert (place.st_uid, place.st_mode & 0o777) == (0, 0o666)
    for _ in range(2):
        ran = served.run("id -u")
        assert (ran.code, ran.out) == (0, f"{ALICE_UID}\n"), ran
    assert served.state(SERVICE) == "active"
    assert served.run("id", account="bob").code == 203


def test_one_payloads_end_for_its_memory_is_not_everybodys(served: Served) -> None:
    """By systemd's defaults the service would be stopped then, and all payloads could have 4915 processes together."""
    shown = served.systemd.ctl("show", "--property=OOMPolicy,TasksMax,Delegate", SERVICE).out.split()
    assert sorted(shown) == ["Delegate=yes", "OOMPolicy=continue", "TasksMax=infinity"]


def test_a_service_that_is_stopped_ends_its_payloads_on_record_and_comes_again(served: Served) -> None:
    marker = secrets.token_hex(6)
    process = served.start(marker)
    assert served.systemd.ctl("stop", SERVICE).code == 0
    told = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 137
    assert "the launcher's service has ended after the command had started" in told
    assert served.site.processes(ALICE_UID) == []
    (ended,) = [line for line in served.site.read(LOG).splitlines() if marker in line and '"rc":137' in line]
    assert '"lost":"the launcher\'s service has ended"' in ended
    assert served.run("exit 5").code == 5


def test_a_service_that_was_killed_comes_again_and_leaves_no_payload(served: Served) -> None:
    assert served.run("exit 5").code == 5
    process = served.start(secrets.token_hex(6))
    served.systemd.ctl("kill", "--kill-who=main", "--signal=KILL", SERVICE)
    assert process.communicate(timeout=60)[0] is None
    assert process.returncode == 137
    assert wait_for(lambda: not served.site.processes(ALICE_UID))
    wait_for(lambda: served.run("exit 5").code == 5)
