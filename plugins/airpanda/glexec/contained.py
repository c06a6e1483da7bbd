"""Without a change of account: bubblewrap where it works, else no wall at all, but an end of all processes.

This is not a switch, and never says that it is: ``switches`` and every outcome's ``identity_switched`` are false. Nor
does it call a payload contained that is not: ``kind`` is "uncontained" without bubblewrap.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Optional

from airpanda.core.errors import IdentitySwitchError
from airpanda.core.identity import Account
from airpanda.glexec import contract
from airpanda.glexec.marks import end_marked, marks_of
from airpanda.glexec.ports import LaunchRecord, PayloadOutcome, ProcessSeen, Usage
from airpanda.glexec.proctree import descendants, tree, usage_of
from airpanda.glexec.running import Process
from airpanda.glexec.sandboxes import PATH, SandboxTools, Tool

# Each is replaced by an empty one. In /run are the sockets of services that trust this account.
_HIDDEN = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108
_RESOLVER = "/etc/resolv.conf"
_PROBE = ("--ro-bind", "/", "/", "--proc", "/proc", "--unshare-pid", "--die-with-parent", "/bin/true")
_KILLED_S = 10
_SUPERVISOR = Path(__file__).with_name("supervisor.py")


class ContainedSwitcher(SandboxTools):
    """The pilot's own account, fenced in where bubblewrap works.

    Args:
        bwrap: bubblewrap, or None; where it is present but does not work (user namespaces off), it is not used.
        hide: directories and files that the payload must not see, besides temporary directories, /run and the
            account's home; needs bubblewrap.
        show: directories inside the hidden ones that it needs, such as software; read-only.
    """

    switches = False

    def __init__(self, bwrap: Optional[Path], *, hide: Sequence[Path] = (), show: Sequence[Path] = ()) -> None:
        self._bwrap = bwrap if bwrap is not None and _works(bwrap) else None
        self.contains = self._bwrap is not None
        self.kind = "contained" if self.contains else "uncontained"
        self._hide = _outermost([*map(Path, _HIDDEN), *_home(), *hide])
        self._show = list(show)
        self._launches: dict[Path, Iterator[int]] = {}

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
        # Its own in its sandbox: whoever looks into the sandbox of a running payload must not end that with its look.
        mark = next(self._launches.setdefault(sandbox, iter(marks_of(sandbox))))
        settings = {"HOME": str(sandbox), "TMPDIR": str(sandbox), "X509_USER_PROXY": str(target)}
        try:
            with open(os.devnull, "rb") as nothing:
                process = Process(
                    [*self._fence(sandbox, mark), *argv],
                    env={"PATH": PATH, **env, **settings},
                    cwd=sandbox,
                    stdin=nothing,
                    stdout=stdout,
                    stderr=stderr,
                )
        except IdentitySwitchError:
            target.unlink()
            raise
        return Contained(process, target, self.preflight(proxy), mark, fenced=self.contains)

    def remove(self, sandbox: Path, proxy: Path) -> None:
        if not self.contains and not end_marked(marks_of(sandbox)):
            raise IdentitySwitchError(f"processes of the payload in {sandbox} do not end")
        super().remove(sandbox, proxy)
        self._launches.pop(sandbox, None)

    def _fence(self, sandbox: Path, mark: int) -> list[str]:
        supervised = [sys.executable, "-IS", str(_SUPERVISOR), str(mark), "01"[self.contains]]
        if self._bwrap is None:
            return supervised
        # Bubblewrap does not wait for the first process of its namespace; who adopts that one learns what it has used.
        fence = [*supervised, str(self._bwrap), "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-ipc"]
        fence += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
        for place in self._hide:
            if place.is_dir():
                fence += ["--tmpfs", str(place)]
            elif place.exists():
                fence += ["--ro-bind", os.devnull, str(place)]
        resolver = os.path.realpath(_RESOLVER)  # usually in /run; without it there is no DNS
        if os.path.isfile(resolver) and any(_is_in(Path(resolver), place) for place in self._hide):
            fence += ["--ro-bind", resolver, resolver]
        for place in self._show:
            fence += ["--ro-bind", str(place), str(place)]
        return [*fence, "--bind", str(sandbox), str(sandbox), "--chdir", str(sandbox), "--"]

    def _tool(self, argv: Sequence[str], proxy: Path, *, cwd: Path, stdin: Optional[IO[bytes]] = None) -> Tool:
        return Tool(argv, env={"PATH": PATH}, cwd=cwd, stdin=stdin)


class Contained:
    """A payload under the pilot's own account."""

    identity_proven = False

    def __init__(self, process: Process, target: Path, account: Account, mark: int, *, fenced: bool) -> None:
        self._fenced = fenced
        self._process = process
        self._target = target
        self._mark = mark
        self._outcome: Optional[PayloadOutcome] = None
        self._killed = False
        self.account = account
        self.record = LaunchRecord("contained" if fenced else "uncontained")

    def wait(self, timeout_s: float) -> Optional[PayloadOutcome]:
        if self._outcome is None and self._process.wait(timeout_s) is not None:
            end_marked([self._mark])  # nothing, unless the payload has killed its supervisor
            self._target.unlink(missing_ok=True)
            self._outcome = self._conclude()
        return self._outcome

    def kill(self, grace_s: float) -> None:
        self._killed = True
        if self._fenced:  # bubblewrap itself would end at once and take the payload with it without any grace
            for pid in tree(self._process.pid)[2:]:
                _signal(pid, signal.SIGTERM)
        else:
            self._process.send(signal.SIGTERM)
        if self._process.wait(grace_s) is None:
            self._process.send(signal.SIGUSR1)
            self._process.wait(_KILLED_S)
        if self._process.code is None:
            for pid in tree(self._process.pid):
                _signal(pid, signal.SIGKILL)
            self._process.wait(_KILLED_S)
        end_marked([self._mark])

    def usage(self) -> Usage:
        return usage_of(self._process.pid)

    def processes(self) -> list[ProcessSeen]:
        return descendants(self._process.pid) if self._process.code is None else []

    def _conclude(self) -> PayloadOutcome:
        process = self._process
        code = contract.shell_code(process.code or 0)
        wall_s = (process.ended_at or time.monotonic()) - process.started_at
        cpu_s, rss_kib = 0.0, 0
        if process.usage is not None:
            cpu_s, rss_kib = process.usage.ru_utime + process.usage.ru_stime, process.usage.ru_maxrss
        lost = "the payload's supervisor was killed; its processes are gone" if self._is_lost else ""
        return PayloadOutcome(code, contract.signal_of(code), wall_s, cpu_s, rss_kib, self.account, False, lost)

    @property
    def _is_lost(self) -> bool:
        """The supervisor ends by a signal only when somebody kills it, or bubblewrap. Without that it may have been the
        payload itself, which nothing keeps from it."""
        return (self._process.code or 0) < 0 and not self._killed


def _home() -> list[Path]:
    """This account's home, where it is its own: some accounts have one such as /usr/sbin."""
    home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    try:
        return [home] if home != Path("/") and home.stat().st_uid == os.geteuid() else []
    except OSError:
        return []


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """Real paths, without those inside of others."""
    found: list[Path] = []
    for path in sorted({Path(os.path.realpath(path)) for path in paths}):
        if not any(_is_in(path, place) for place in found):
            found.append(path)
    return found


def _is_in(path: Path, place: Path) -> bool:
    return place == path or place in path.parents


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
