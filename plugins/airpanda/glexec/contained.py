"""Containment without a change of account: bubblewrap where it works, else a supervisor that ends all processes.

This is not a switch, and never says that it is: ``switches`` and every outcome's ``identity_switched`` are false.
"""

from __future__ import annotations

import os
import pwd
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Optional

from airpanda.core.errors import IdentitySwitchError
from airpanda.core.identity import Account
from airpanda.glexec import contract
from airpanda.glexec.ports import PayloadOutcome, Usage
from airpanda.glexec.proctree import tree, usage_of
from airpanda.glexec.running import Process
from airpanda.glexec.sandboxes import PATH, SandboxTools, Tool

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - each is replaced by an empty one
_PROBE = ("--ro-bind", "/", "/", "--proc", "/proc", "--unshare-pid", "--die-with-parent", "/bin/true")
_KILLED_S = 10
_SUPERVISOR = Path(__file__).with_name("supervisor.py")


class ContainedSwitcher(SandboxTools):
    """The pilot's own account, fenced in.

    Args:
        bwrap: bubblewrap, or None; where it is present but does not work (user namespaces off), it is not used.
        hide: directories that the payload must not see; needs bubblewrap.
        show: directories inside the hidden ones that it needs, such as software; read-only.
    """

    kind = "contained"
    switches = False

    def __init__(self, bwrap: Optional[Path], *, hide: Sequence[Path] = (), show: Sequence[Path] = ()) -> None:
        self._bwrap = bwrap if bwrap is not None and _works(bwrap) else None
        self._hide = [*map(Path, _TEMPORARY), *hide]
        self._show = list(show)

    @property
    def contains(self) -> str:
        """What fences the payload in, in words for a person."""
        return "bubblewrap" if self._bwrap is not None else "a supervisor of its processes only"

    def preflight(self, proxy: Path) -> Account:
        entry = pwd.getpwuid(os.geteuid())
        return Account(entry.pw_name, entry.pw_uid, (entry.pw_gid,))

    def make_sandbox(self, parent: Path, proxy: Path) -> Path:
        inner = Path(tempfile.mkdtemp(prefix="payload-", dir=parent)) / secrets.token_hex(8)
        inner.mkdir(mode=0o700)
        return inner

    def launch(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        sandbox: Path,
        proxy: Path,
        stdout: Path,
        stderr: Path,
        label: str,
    ) -> Contained:
        target = sandbox / f".x509up-{secrets.token_hex(4)}"
        _copy_private(proxy, target)
        settings = {"HOME": str(sandbox), "TMPDIR": str(sandbox), "X509_USER_PROXY": str(target)}
        try:
            with open(os.devnull, "rb") as nothing:
                process = Process(
                    [*self._fence(sandbox), *argv],
                    env={"PATH": PATH, **env, **settings},
                    cwd=sandbox,
                    stdin=nothing,
                    stdout=stdout,
                    stderr=stderr,
                )
        except IdentitySwitchError:
            target.unlink()
            raise
        return Contained(process, target, self.preflight(proxy), fenced=self._bwrap is not None)

    def _fence(self, sandbox: Path) -> list[str]:
        if self._bwrap is None:
            return [sys.executable, "-IS", str(_SUPERVISOR)]
        fence = [str(self._bwrap), "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-ipc"]
        fence += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
        for place in self._hide:
            if place.is_dir():
                fence += ["--tmpfs", str(place)]
        for place in self._show:
            fence += ["--ro-bind", str(place), str(place)]
        return [*fence, "--bind", str(sandbox), str(sandbox), "--chdir", str(sandbox), "--"]

    def _tool(self, argv: Sequence[str], proxy: Path, *, cwd: Path, stdin: Optional[IO[bytes]] = None) -> Tool:
        return Tool(argv, env={"PATH": PATH}, cwd=cwd, stdin=stdin)


class Contained:
    """A payload under the pilot's own account."""

    identity_proven = False

    def __init__(self, process: Process, target: Path, account: Account, *, fenced: bool) -> None:
        self._process = process
        self._target = target
        self._fenced = fenced
        self._outcome: Optional[PayloadOutcome] = None
        self.account = account

    def wait(self, timeout_s: float) -> Optional[PayloadOutcome]:
        if self._outcome is None and self._process.wait(timeout_s) is not None:
            self._target.unlink(missing_ok=True)
            self._outcome = self._conclude()
        return self._outcome

    def kill(self, grace_s: float) -> None:
        if self._fenced:  # bubblewrap itself would end at once and take the payload with it without any grace
            for pid in tree(self._process.pid)[1:]:
                _signal(pid, signal.SIGTERM)
        else:
            self._process.send(signal.SIGTERM)
        if self._process.wait(grace_s) is None and not self._fenced:
            self._process.send(signal.SIGUSR1)
            self._process.wait(_KILLED_S)
        if self._process.code is None:
            for pid in tree(self._process.pid):
                _signal(pid, signal.SIGKILL)
            self._process.wait(_KILLED_S)

    def usage(self) -> Usage:
        return usage_of(self._process.pid)

    def _conclude(self) -> PayloadOutcome:
        process = self._process
        code = contract.shell_code(process.code or 0)
        wall_s = (process.ended_at or time.monotonic()) - process.started_at
        cpu_s, rss_kib = 0.0, 0
        if process.usage is not None:
            cpu_s, rss_kib = process.usage.ru_utime + process.usage.ru_stime, process.usage.ru_maxrss
        return PayloadOutcome(code, contract.signal_of(code), wall_s, cpu_s, rss_kib, self.account, False)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _copy_private(source: Path, target: Path) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(source.read_bytes())


def _works(bwrap: Path) -> bool:
    try:
        return subprocess.run([bwrap, *_PROBE], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
