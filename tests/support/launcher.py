"""A worker node with a launcher, people with proxies on it, and a pilot that uses it. Needs root.

A test module has one node: its ``site`` fixture is ``yield from make_site()``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import airpanda
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy
from airpanda_demo.worker_node import INSTALLED, NodeAccount, WorkerNode
from support.need import need_program, need_root
from support.pki import Pki

# Uids of this test run alone: a survivor is looked for on the whole machine, where other nodes may be running.
_BASE = 100_000 + os.getpid() % 10_000 * 100
PILOT_UID, ROBOT_UID, ALICE_UID, BOB_UID = _BASE + 1, _BASE + 11, _BASE + 12, _BASE + 13
GROUPED_UID, OTHER_UID, MAPPER_UID, GROUPS = _BASE + 22, _BASE + 23, _BASE + 24, (_BASE + 50, _BASE + 51)
HOME, WORK = Path("/home/pilot"), Path("/run/work")
TIMEOUT_S = 180
PLUGINS = Path(airpanda.__file__).parent.parent
POOL = ("dt001", "dt002")
ACCOUNTS = (
    NodeAccount("pilot", PILOT_UID),
    NodeAccount("robot", ROBOT_UID),
    NodeAccount("alice", ALICE_UID),
    NodeAccount("bob", BOB_UID),
    NodeAccount("system", _BASE + 21, (42,)),
    NodeAccount("grouped", GROUPED_UID, GROUPS),
    NodeAccount("other", OTHER_UID),
    NodeAccount("mapper", MAPPER_UID),
    NodeAccount("low", 900),
    *(NodeAccount(name, _BASE + 31 + number) for number, name in enumerate(POOL)),
)


class Site:
    """A running node, its PKI, and what a test does on it as the pilot."""

    def __init__(
        self, root: Path, *, accounts: Sequence[NodeAccount] = ACCOUNTS, respawn: bool = False, **options: str
    ) -> None:
        self.mapping = options.get("mapping", "own")
        self.pki = Pki(root / "pki")
        self.secret_dir = root / "site private"
        self.secret_dir.mkdir(mode=0o755)
        (self.secret_dir / "key").write_text("site's own")
        (self.secret_dir / "key").chmod(0o644)
        self.mapfile = {self.pki.dn("alice"): "alice", self.pki.dn("bob"): "bob"}
        self.node = WorkerNode(
            root / "node",
            ca_dir=self.pki.ca_dir,
            mapfile=self.mapfile,
            accounts=accounts,
            software=[PLUGINS],  # the checkout may lie where a node shows nothing, such as /home or /tmp
            hide=[self.secret_dir],
            options={"max_proxy_hours": "24", "max_processes": "256", **options},
            pools=POOL,
            respawn=respawn,
        )
        self.node.start(180)  # at a busy machine
        work = self.node.path(WORK)
        work.mkdir()
        work.chmod(0o755)

    @property
    def glexec(self) -> str:
        return str(self.node.glexec)

    def credential(self, who: str) -> ProxyCredential:
        return ProxyCredential.from_files(*self.pki.user(who))

    def proxy(self, who: str = "alice", *, hours: float = 12, limited: bool = False) -> ProxyCredential:
        lifetime = timedelta(hours=hours)
        return create_proxy(self.credential(who), lifetime=lifetime, now=datetime.now(UTC), limited=limited)

    def put_proxy(self, who: str = "alice", **options: Any) -> Path:
        return self.put(self.proxy(who, **options).to_pem().reveal())

    def put(self, data: bytes, *, uid: int = PILOT_UID, mode: int = 0o600, where: Path = HOME) -> Path:
        """A file on the node; its path there."""
        inside = where / f"file-{secrets.token_hex(6)}"
        outside = self.node.path(inside)
        outside.write_bytes(data)
        os.chown(outside, uid, uid)
        outside.chmod(mode)
        return inside

    def directory(self, uid: int = PILOT_UID, mode: int = 0o700, where: Path | None = None) -> Path:
        inside = (where or WORK) / f"dir-{secrets.token_hex(6)}"
        outside = self.node.path(inside)
        outside.mkdir()
        os.chown(outside, uid, uid)
        outside.chmod(mode)
        return inside

    def read(self, inside: Path) -> str:
        return self.node.path(inside).read_text()

    def argv(self, *command: str, env: Mapping[str, str] | None = None, account: str = "pilot") -> list[str]:
        variables = [f"{name}={value}" for name, value in (env or {}).items()]
        return [*self.node.enter_argv(account), "env", *variables, *command]

    def run(self, *command: str, env: Mapping[str, str] | None = None, account: str = "pilot", **popen: Any) -> Ran:
        """Run a command as the pilot, its environment as given."""
        done = subprocess.run(
            self.argv(*command, env=env, account=account), capture_output=True, timeout=TIMEOUT_S, **popen
        )
        return Ran(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))

    def as_root(self, *command: str) -> Ran:
        """Run a command as the node's root."""
        done = subprocess.run([*self.node.root_argv(), *command], capture_output=True, timeout=TIMEOUT_S)
        return Ran(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))

    def glexec_run(self, *command: str, proxy: Path | str | None = None, **more: Any) -> Ran:
        """Run a command through the launcher with this proxy (Alice's where none is given)."""
        env = {"GLEXEC_CLIENT_CERT": str(proxy or self.put_proxy()), **more.pop("env", {})}
        return self.run(self.glexec, *command, env=env, **more)

    def start(self, *command: str, env: Mapping[str, str], **popen: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.argv(*command, env=env), start_new_session=True, **popen)

    def last_record(self) -> dict[str, Any]:
        return dict(self.node.records()[-1])

    def processes(self, uid: int) -> list[int]:
        """Pids, as the host sees them, of living processes whose real uid is this."""
        return [pid for pid in host_pids() if (ids := host_status(pid)) and ids["Uid"].split()[0] == str(uid)]

    def close(self) -> None:
        self.node.stop()


class Ran:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"Ran(code={self.code}, out={self.out!r}, err={self.err!r})"


def host_pids() -> Sequence[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def host_status(pid: int) -> dict[str, str]:
    """/proc/PID/status as the host sees it; empty for a process that is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return {}
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {} if lines["State"].strip().startswith("Z") else {name: value.strip() for name, value in lines.items()}


def program_of(command_line: bytes) -> str:
    """Which installed program an interpreter runs, by /proc/PID/cmdline; empty where it is something else."""
    words = command_line.split(b"\0")
    return Path(os.fsdecode(words[2])).stem if len(words) > 2 and words[1].startswith(b"-I") else ""


def make_site(*, accounts: Sequence[NodeAccount] = ACCOUNTS, respawn: bool = False, **options: str) -> Iterator[Site]:
    """A site in a directory of its own, with a space in its path; removed at the end.

    ``respawn``: its launcher's daemon comes back after a kill. ``options`` are the launcher's.
    """
    need_root()
    root = Path(tempfile.mkdtemp(prefix="airpanda node ", dir="/var/tmp"))
    site = None
    try:
        site = Site(root, accounts=accounts, respawn=respawn, **options)
        yield site
    finally:
        if site is not None:
            site.close()
        shutil.rmtree(root)


running_site = contextlib.contextmanager(make_site)


def allow_sudo(site: Site) -> None:
    """Let the pilot start the launcher by the rule that is shipped with it."""
    need_program("sudo", "sudo")
    etc = site.node.path(Path("/etc"))
    (etc / "sudoers.d").mkdir(mode=0o750)
    (etc / "sudoers").write_text("Defaults env_reset\n@includedir /etc/sudoers.d\n")
    (etc / "sudoers.d" / "airpanda-glexec").write_text(site.read(INSTALLED.prefix / "share" / "sudoers"))
    for path in (etc / "sudoers", etc / "sudoers.d" / "airpanda-glexec"):
        path.chmod(0o440)


def wait_for(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    """What the condition gives once it is true; fails after the time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come true in time")
