"""The demonstration's node by sudo with LCMAPS, and by socket with our own mapping: seen from outside of the node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.demo import ROOT, reachable_directory
from support.launcher import host_status, wait_for
from support.need import absent, need_program, need_root
from support.node_processes import descends

from airpanda.core.errors import ConfigurationError
from airpanda_demo.nodes import DemoNode
from airpanda_demo.options import Options
from airpanda_demo.place import Place
from airpanda_demo.site import Node, Site
from airpanda_demo.switching import SUDO, choose, find_lcmaps
from airpanda_demo.worker_node import ACCOUNTS, GRID_SECURITY, SUDO_LOG, WorkerNode

pytestmark = [pytest.mark.root, pytest.mark.integration]

UIDS = {account.name: account.uid for account in ACCOUNTS}
# Runs the rest on a machine without sudo or without LCMAPS: in a mount namespace where they are not to be seen.
_WITHOUT = {
    "sudo": f"mount --bind /dev/null {SUDO}",
    "visudo": "mount --bind /mnt/empty /usr/sbin",
    "LCMAPS": "mount --bind /mnt/empty /usr/lib/lcmaps",
    "LCMAPS' libraries": "for f in /usr/lib/*/liblcmaps_return_account*.so.0.*; do mount --bind /mnt/no $f; done",
}
_ASK = "from pathlib import Path; import json, sys; from airpanda_demo.switching import choose\n"
_ASK += "print(json.dumps(vars(choose(Path(sys.executable))), default=str))"


class Demonstration:
    """A node as `make demo` builds it, without Airflow."""

    def __init__(self, directory: Path, *, socket_launcher: bool) -> None:
        place = Place(directory)
        place.software.symlink_to(sys.prefix)
        place.logs.mkdir()
        self.site = Site(place, ROOT, Options(None, None, embedded_myproxy=True, socket_launcher=socket_launcher))
        self.site.make_identities()
        self.demo_node = DemoNode(self.site)
        self.about: Node = self.demo_node.start()
        assert self.demo_node._node is not None
        self.node: WorkerNode = self.demo_node._node

    def proxy(self, who: str) -> Path:
        """The owner's proxy as a pilot has it on the node; its path there."""
        inside = Path("/home/pilot", f"{who}-{os.urandom(4).hex()}")
        outside = self.node.path(inside)
        outside.write_bytes((self.site.place.pki / f"{who}.proxy").read_bytes())
        outside.chmod(0o600)
        os.chown(outside, UIDS["pilot"], UIDS["pilot"])
        return inside

    def command(self, who: str, *command: str, label: str = "") -> list[str]:
        env = [f"GLEXEC_CLIENT_CERT={self.proxy(who)}", f"GLEXEC_ID={label}"]
        return [*self.about.enter, "/usr/bin/env", *env, self.about.glexec, *command]

    def run(self, who: str, *command: str, label: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(who, *command, label=label), capture_output=True, text=True, timeout=60)

    def chain(self, who: str) -> list[dict[str, str]]:
        """The payload of this owner and all above it up to the node's first process, as the host sees them."""
        sleeping = subprocess.Popen(self.command(who, "/bin/sleep", "60"), start_new_session=True)
        payload = 0
        try:
            payload = wait_for(lambda: self._sleeper(UIDS[who], sleeping.pid))
            chain = [host_status(payload)]
            while (parent := int(chain[-1]["PPid"])) not in (self.node.init_pid, os.getpid(), 0, 1):
                chain.append(host_status(parent))
            return chain
        finally:
            os.killpg(sleeping.pid, signal.SIGKILL)  # nothing of the payload survives its launcher
            sleeping.wait(60)
            assert wait_for(lambda: not host_status(payload))

    def _sleeper(self, uid: int, above: int) -> int | None:
        """What this one has started: a demonstration beside it has accounts of the same uids."""
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            status = host_status(pid)
            of_uid = status and status["Uid"].split() == [str(uid)] * 4
            if of_uid and status["Name"] == "sleep" and any(descends(pid, one) for one in (self.node.init_pid, above)):
                return pid
        return None


@pytest.fixture(scope="module", name="by_sudo")
def with_sudo_and_lcmaps() -> Iterator[Demonstration]:
    need_root()
    need_program("sudo", "sudo")
    if find_lcmaps(Path(sys.executable))[0] is None:
        absent("NOT TESTED: LCMAPS is missing (tests/install-system-packages)")
    yield from demonstration(socket_launcher=False)


@pytest.fixture(scope="module", name="by_socket")
def with_neither() -> Iterator[Demonstration]:
    need_root()
    yield from demonstration(socket_launcher=True)


def demonstration(*, socket_launcher: bool) -> Iterator[Demonstration]:
    with reachable_directory() as directory:
        running = Demonstration(directory, socket_launcher=socket_launcher)
        try:
            yield running
        finally:
            running.demo_node.stop()


def names(chain: list[dict[str, str]]) -> list[str]:
    return [status["Name"] for status in chain]


def test_payloads_run_below_sudo_as_their_owners(by_sudo: Demonstration) -> None:
    assert by_sudo.demo_node.switching is not None
    assert (by_sudo.demo_node.switching.lacks, by_sudo.about.glexec[-12:]) == ((), "/glexec-sudo")
    for who in ("alice", "robot"):
        chain = by_sudo.chain(who)
        assert chain[0]["Uid"].split() == [str(UIDS[who])] * 4
        assert (chain[0]["CapEff"], chain[0]["NoNewPrivs"]) == ("0" * 16, "1")
        assert "sudo" in names(chain)
        assert chain[names(chain).index("sudo") - 1]["Uid"].split()[0] == "0", "the launcher is sudo's child"
    assert not by_sudo.node.path(Path("/run/airpanda/launcher.socket")).exists()


def test_the_launcher_and_sudo_each_say_so_in_their_own_logs(by_sudo: Demonstration) -> None:
    before = len(by_sudo.node.records())
    ran = by_sudo.run("bob", "/usr/bin/id", "-u", label="PandaID=7 attempt=1")
    assert (ran.returncode, ran.stdout) == (0, f"{UIDS['bob']}\n"), ran
    launch = by_sudo.demo_node.launches()["PandaID=7 attempt=1"]
    assert (launch.launcher, launch.mapping, launch.uid) == ("sudo", "lcmaps", UIDS["bob"])
    assert launch.dn == by_sudo.site.dn("bob")
    assert len(by_sudo.node.records()) == before + 1
    log = by_sudo.node.path(SUDO_LOG)
    last = log.read_text().splitlines()[-1]
    assert " pilot : " in last
    assert last.endswith("USER=root ; COMMAND=/run/airpanda/sbin/airpanda-launcher /usr/bin/id -u"), last
    assert log.stat().st_mode & 0o777 == 0o600


def test_it_is_lcmaps_that_decides(by_sudo: Demonstration) -> None:
    """With another policy Alice is nobody here, whatever the grid-mapfile says that our own mapping would read."""
    database = by_sudo.node.path(GRID_SECURITY / "lcmaps.db")
    text = database.read_text()
    assert by_sudo.run("alice", "/usr/bin/id", "-u").stdout == f"{UIDS['alice']}\n"
    database.write_text(text.replace("grid-mapfile", "no-mapfile"))
    by_sudo.node.path(GRID_SECURITY / "no-mapfile").write_text("")
    try:
        ran = by_sudo.run("alice", "/usr/bin/id", "-u")
        assert (ran.returncode, ran.stdout) == (203, "")
        assert "LCMAPS does not map this proxy" in ran.stderr
        database.unlink()
        ran = by_sudo.run("alice", "/usr/bin/id", "-u")
        assert (ran.returncode, ran.stdout) == (202, "")  # and nothing else is tried
    finally:
        database.write_text(text)
    assert by_sudo.run("alice", "/usr/bin/id", "-u").stdout == f"{UIDS['alice']}\n"


def test_sudo_gives_nothing_but_the_launcher_and_to_nobody_but_the_pilot(by_sudo: Demonstration) -> None:
    for command in (["/usr/bin/id"], ["/run/airpanda/sbin/airpanda-launcherd"]):
        refused = subprocess.run([*by_sudo.about.enter, str(SUDO), "-n", *command], capture_output=True, timeout=60)
        assert (refused.returncode, refused.stdout) == (1, b"")
    as_alice = [*by_sudo.node.enter_argv("alice"), by_sudo.about.glexec, "/usr/bin/id"]
    assert subprocess.run(as_alice, capture_output=True, timeout=60).returncode == 1
    inside = by_sudo.run("alice", by_sudo.about.glexec, "/usr/bin/id")
    assert (inside.returncode, inside.stdout) == (1, ""), "a payload gets no sudo at all"


def test_without_them_the_socket_and_our_own_mapping_serve(by_socket: Demonstration) -> None:
    chosen = by_socket.demo_node.switching
    assert chosen is not None
    assert chosen.words == (
        "the launcher is started by its root-owned socket, accounts come from airpanda's own mapping "
        "(AIRPANDA_DEMO_LAUNCHER=socket asks for it)"
    )
    chain = by_socket.chain("alice")
    assert chain[0]["Uid"].split() == [str(UIDS["alice"])] * 4
    assert "sudo" not in names(chain)
    assert by_socket.run("bob", "/usr/bin/id", "-u", label="PandaID=8 attempt=1").stdout == f"{UIDS['bob']}\n"
    launch = by_socket.demo_node.launches()["PandaID=8 attempt=1"]
    assert (launch.launcher, launch.mapping, launch.uid) == ("socket", "own", UIDS["bob"])
    for path in (SUDO_LOG, Path("/etc/sudoers"), GRID_SECURITY / "lcmaps.db"):
        assert not by_socket.node.path(path).exists()


@pytest.mark.parametrize(
    ("missing", "choice", "said"),
    [
        (["sudo"], ("socket", "lcmaps"), ["sudo is not installed as a whole"]),
        (["visudo"], ("socket", "lcmaps"), ["sudo is not installed as a whole"]),
        (["LCMAPS"], ("sudo", "own"), ["LCMAPS is not installed; Debian's packages are liblcmaps0"]),
        (["LCMAPS' libraries"], ("sudo", "own"), ["LCMAPS' libraries are not installed"]),
        (["sudo", "LCMAPS"], ("socket", "own"), ["sudo is not installed", "LCMAPS is not installed"]),
    ],
    ids=lambda value: " and ".join(value) if isinstance(value, list) else "",
)
def test_what_is_installed_decides(missing: list[str], choice: tuple[str, str], said: list[str]) -> None:
    need_root()
    need_program("sudo", "sudo")
    hide = "; ".join(_WITHOUT[name] for name in missing)
    script = f'set -e; mount -t tmpfs none /mnt; mkdir /mnt/empty; : >/mnt/no; {hide}; exec "$@"'
    asked = [sys.executable, "-c", _ASK]
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *asked]
    path = os.pathsep.join(str(ROOT / name) for name in ("include/demo", "plugins"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    assert (found["way"], found["mapping"]) == choice
    assert len(found["lacks"]) == len(said)
    for words, reason in zip(said, found["lacks"], strict=True):
        assert words in reason


def test_a_process_that_can_gain_no_rights_does_not_choose_sudo() -> None:
    need_root()
    need_program("sudo", "sudo")
    path = os.pathsep.join(str(ROOT / name) for name in ("include/demo", "plugins"))
    command = ["setpriv", "--no-new-privs", sys.executable, "-c", _ASK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path})
    assert json.loads(done.stdout)["way"] == "socket"
    assert choose(Path(sys.executable)).way == "sudo"


def test_a_chosen_sudo_that_does_not_work_ends_the_start(tmp_path: Path) -> None:
    """Nothing falls back: the node does not start with something weaker."""
    need_root()
    need_program("sudo", "sudo")
    with reachable_directory() as directory:
        place = Place(directory)
        place.software.symlink_to(sys.prefix)
        place.logs.mkdir()
        site = Site(place, ROOT, Options(None, None, embedded_myproxy=True))
        site.make_identities()
        broken = textwrap.dedent("path = /usr/lib/lcmaps\nglexec_get_account:\nnonsense ->\n")
        node = WorkerNode(
            place.node,
            ca_dir=site.pki.ca_dir,
            mapfile={},
            software=[Path(sys.prefix)],
            options={"lcmaps_user": "nobody-of-this-name"},
            lcmaps_db=broken,
            sudo=True,
        )
        with pytest.raises(ConfigurationError, match=r"cannot be used by sudo's rule \(202\): .*no account nobody-of"):
            node.start()
