"""A worker node on this machine: private namespaces with their own accounts, where the launcher really switches.

The host's accounts and files stay as they are. The node has its own ``/etc`` (a copy with the node's accounts),
empty ``/home``, ``/tmp``, ``/var/tmp``, ``/run`` and ``/root``; of hidden places only the given software is seen,
read-only, at its own path. Everything ends with the node's first process, whoever kills it, or with the program
that started it.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import airpanda
from airpanda.core.errors import ConfigurationError
from airpanda.glexec.install import Installed

PREFIX = Path("/run/airpanda")
GRID_SECURITY = Path("/etc/grid-security")
LOG = PREFIX / "log" / "glexec.jsonl"
SUDO_LOG = PREFIX / "log" / "sudo.log"
INSTALLED = Installed(PREFIX, PREFIX / "launcher.socket")


@dataclass(frozen=True)
class NodeAccount:
    """An account of the node, with a group of its own and perhaps others by number."""

    name: str
    uid: int
    groups: tuple[int, ...] = ()


ACCOUNTS = (
    NodeAccount("pilot", 61001),
    NodeAccount("robot", 61011),
    NodeAccount("alice", 61012),
    NodeAccount("bob", 61013),
)


class WorkerNode:
    """One node. ``directory`` holds its log and the ``enter`` script; it is not seen from inside.

    Args:
        directory: made if missing; private to root.
        ca_dir: certificate directory, copied in at the start.
        vomsdir: the trusted VOMS servers, copied in at the start; None trusts none.
        mapfile: DN to account (or ``.pool``); changed later by ``set_mapfile``.
        accounts: the node's accounts; the first is the pilots' and the launcher's only caller.
        software: directories to show read-only, such as a checkout; the interpreter comes by itself.
        hide: places of the host that nobody on the node may see.
        python: the interpreter of the launcher; needs ``cryptography``.
        options: further options of the launcher's configuration.
        pools: pool accounts, listed in the gridmapdir.
        lcmaps_db: the text of LCMAPS' configuration, where LCMAPS maps; empty for our own mapping.
        sudo: start the launcher by a sudo rule alone, without its daemon and socket.
        respawn: start the launcher's daemon again when it has ended; without this the node ends with it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        ca_dir: Path,
        vomsdir: Optional[Path] = None,
        mapfile: Mapping[str, str],
        accounts: Sequence[NodeAccount] = ACCOUNTS,
        software: Sequence[Path] = (),
        hide: Sequence[Path] = (),
        python: Path = Path(sys.executable),
        options: Optional[Mapping[str, str]] = None,
        pools: Sequence[str] = (),
        lcmaps_db: str = "",
        sudo: bool = False,
        respawn: bool = False,
        hostname: str = "wn1.airpanda.test",
    ) -> None:
        self.directory = directory
        self._accounts = {account.name: account for account in accounts}
        self._pilot = accounts[0].name
        self._spec = {
            "ca_dir": str(ca_dir),
            "vomsdir": str(vomsdir) if vomsdir is not None else "",
            "mapfile": render_mapfile(mapfile),
            "accounts": [[a.name, a.uid, list(a.groups)] for a in accounts],
            "software": [str(path) for path in [*python_directories(python), *software]],
            "hide": [str(path) for path in (directory, *hide)],
            "python": str(python),
            "options": dict(options or {}),
            "pools": list(pools),
            "lcmaps_db": lcmaps_db,
            "sudo": sudo,
            "respawn": respawn,
            "hostname": hostname,
        }
        self._supervisor: Optional[subprocess.Popen[str]] = None
        self.init_pid = 0

    @property
    def glexec(self) -> Path:
        """What pilots call, as seen on the node (``OSG_GLEXEC_LOCATION``)."""
        return INSTALLED.glexec_sudo if self._spec["sudo"] else INSTALLED.glexec

    @property
    def enter(self) -> Path:
        """A program that runs its arguments on the node as the pilots' account; for root."""
        return self.directory / "enter"

    def start(self, timeout_s: float = 60) -> None:
        """Build the node and start its launcher; returns when it answers.

        Raises:
            ConfigurationError: not root, or a step failed; nothing is left running.
        """
        if os.geteuid() != 0:
            raise ConfigurationError("a worker node with accounts of its own needs root")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        roots = [Path(airpanda.__file__).parent.parent, Path(__file__).parent.parent]
        start = f"import sys; sys.path[:0] = {[str(r) for r in roots]!r}; import airpanda_demo.worker_node_init as i"
        with (self.directory / "node.log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-c", f"{start}; sys.exit(i.main())"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd="/",
                start_new_session=True,
            )
        try:
            self._hand_over(timeout_s)
            self._write_enter()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the node and everything on it. A repeat is no error."""
        supervisor, self._supervisor, self.init_pid = self._supervisor, None, 0
        if supervisor is None:
            return
        for stream in (supervisor.stdin, supervisor.stdout):
            if stream is not None:
                stream.close()
        try:
            supervisor.wait(5)
        except subprocess.TimeoutExpired:
            # All on the node is killed by now, but the node ends only when the last one's parent, outside, has noticed.
            supervisor.kill()
            supervisor.wait()

    def enter_argv(self, account: Optional[str] = None) -> list[str]:
        """What to put before a command to run it on the node, in the account's home; for root.

        The command gets this process's environment with HOME, USER and LOGNAME replaced. To kill it, kill the
        process group: ``nsenter`` does not pass signals on.
        """
        entry = self._accounts[account or self._pilot]
        home = f"/home/{entry.name}"
        return [
            *self._nsenter(),
            f"--setgid={entry.uid}",
            f"--setuid={entry.uid}",
            "--",
            "/usr/bin/env",
            "-C",
            home,
            f"HOME={home}",
            f"USER={entry.name}",
            f"LOGNAME={entry.name}",
        ]

    def root_argv(self) -> list[str]:
        """As ``enter_argv``, for the node's root."""
        return [*self._nsenter(), "--", "/usr/bin/env", "-C", "/"]

    def path(self, inside: Path) -> Path:
        """Where the host sees a path of the node."""
        return Path(f"/proc/{self.init_pid}/root") / inside.relative_to("/")

    def set_mapfile(self, mapfile: Mapping[str, str]) -> None:
        """Replace the node's grid-mapfile; the next launch reads it."""
        target = self.path(GRID_SECURITY / "grid-mapfile")
        fresh = target.with_name(".grid-mapfile.new")
        fresh.write_text(render_mapfile(mapfile))
        fresh.chmod(0o644)
        fresh.replace(target)

    def records(self) -> list[dict[str, object]]:
        """The launcher's records so far, oldest first: one for each request that has ended."""
        return [event for event in self.events() if event.get("event") != "started"]

    def events(self) -> list[dict[str, object]]:
        """All that is in the launcher's log, with the starts."""
        log = self.path(LOG)
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def _nsenter(self) -> list[str]:
        if not self.init_pid:
            raise ConfigurationError("the worker node is not running")
        return ["/usr/bin/nsenter", f"--target={self.init_pid}", "--mount", "--uts", "--ipc", "--pid"]

    def _hand_over(self, timeout_s: float) -> None:
        supervisor = self._supervisor
        if supervisor is None or supervisor.stdin is None or supervisor.stdout is None:
            raise ConfigurationError("the worker node's supervisor has no pipes")
        supervisor.stdin.write(json.dumps(self._spec) + "\n")
        supervisor.stdin.flush()
        while True:
            ready, _, _ = select.select([supervisor.stdout.fileno()], [], [], timeout_s)
            word, _, rest = (supervisor.stdout.readline() if ready else "").strip().partition(" ")
            if word == "ready":
                return
            if word != "init":
                raise ConfigurationError(
                    f"the worker node did not start: {rest or 'no reason given'}; see {self.directory}/node.log"
                )
            self.init_pid = int(rest)

    def _write_enter(self) -> None:
        self.enter.write_text(f'#!/bin/sh\nexec {shlex.join(self.enter_argv())} "$@"\n')
        self.enter.chmod(0o755)


def render_mapfile(mapfile: Mapping[str, str]) -> str:
    """grid-mapfile lines for DN to account."""
    return "".join(f'"{dn}" {account}\n' for dn, account in mapfile.items())


def python_directories(python: Path) -> list[Path]:
    """The directories that an interpreter needs, by the names it uses and by their real ones."""
    question = "import sys, sysconfig; print(sys.prefix, sys.base_prefix, sysconfig.get_path('stdlib'), sep='\\n')"
    asked = subprocess.run([python, "-I", "-c", question], capture_output=True, text=True, timeout=60, check=True)
    names = [*asked.stdout.splitlines(), str(Path(os.path.realpath(python)).parent)]
    found = dict.fromkeys(path for name in names for path in (name, os.path.realpath(name)))
    return [Path(path) for path in found if not path.startswith(("/usr/", "/lib")) and path != "/usr"]
