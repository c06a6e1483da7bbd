"""Running a payload through any launcher that keeps gLExec's contract: ours or a site's real one."""

from __future__ import annotations

import json
import os
import pwd
import random
import re
import secrets
import shlex
import signal
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Optional

from airpanda.core.errors import IdentitySwitchError, RequestError
from airpanda.core.identity import Account
from airpanda.glexec import contract
from airpanda.glexec.ports import PayloadOutcome, ProcessSeen, Usage
from airpanda.glexec.proctree import descendants, ids_of, tree, usage_of
from airpanda.glexec.running import Process
from airpanda.glexec.sandboxes import PATH, SandboxTools, Tool, open_path

STARTED_MARK = ".airpanda-started"
_PROXY_NAME = ".x509up"
_START_S = 120
_ENDED_S = 10
_TRIES = 3
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The environment comes by stdin, because argv is seen by everybody and GLEXEC_* ends in logs. "complete" is its last
# line: half an environment is none. Before the mark the wrapper fails with 126, after it every code is the payload's.
_START = (
    'cd "$0" && eval "$(cat)" && test "$AIRPANDA_ENV" = complete && : >' + STARTED_MARK + " || exit 126\n"
    'unset AIRPANDA_ENV; exec "$@" </dev/null'
)


class GlexecSwitcher(SandboxTools):
    """The owner's account through a launcher. Environment variables of the pilot's own do not go along."""

    kind = "glexec"
    switches = True
    contains = True

    def __init__(self, glexec: Path, *, retry_s: float = 5.0) -> None:
        self._glexec = str(glexec)
        self._retry_s = retry_s

    def preflight(self, proxy: Path) -> Account:
        for attempt in range(_TRIES):
            try:
                return self._identify(proxy)
            except IdentitySwitchError as error:
                if error.exit_code != contract.INTERNAL_ERROR or attempt == _TRIES - 1:
                    raise
            time.sleep(random.uniform(0, self._retry_s))  # noqa: S311 - spreads retries, hides nothing
        raise AssertionError("unreachable")

    def _identify(self, proxy: Path) -> Account:
        tool = self._tool(["/bin/sh", "-c", "id -u && id -un && id -G"], proxy, cwd=Path("/"))
        lines = tool.output.read(64 * 1024).decode(errors="replace").splitlines()
        self._finish(tool)
        try:
            account = Account(lines[1], int(lines[0]), tuple(map(int, lines[2].split())))
        except (IndexError, ValueError) as error:
            raise IdentitySwitchError("the launcher ran 'id', but its answer cannot be read") from error
        _check_other(account.uid)
        return account

    def make_sandbox(self, parent: Path, proxy: Path) -> Path:
        outer = Path(tempfile.mkdtemp(prefix="payload-", dir=parent))
        open_path(outer)
        inner = outer / secrets.token_hex(8)
        outer.chmod(0o733)  # the target makes its own directory; the name cannot be listed or guessed
        try:
            self._finish(self._tool(["/bin/mkdir", "-m", "0700", str(inner)], proxy, cwd=outer))
            outer.chmod(0o711)
            self._check_sandbox(inner)
        except (IdentitySwitchError, OSError):
            outer.chmod(0o700)
            if inner.is_dir():
                inner.rmdir()
            outer.rmdir()
            raise
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
    ) -> ThroughGlexec:
        owner = self._check_sandbox(sandbox)
        target = sandbox / f"{_PROXY_NAME}-{secrets.token_hex(4)}"
        record = sandbox.parent / f"record-{secrets.token_hex(8)}"
        settings = {"HOME": str(sandbox), "TMPDIR": str(sandbox), "X509_USER_PROXY": str(target)}
        environ = {**self._environ(proxy, target), contract.LOG_ID: label, contract.RECORD: str(record)}
        with _exports({"PATH": PATH, **env, **settings}) as exports:
            process = Process(
                [self._glexec, "/bin/sh", "-c", _START, str(sandbox), *argv],
                env=environ,
                cwd=sandbox.parent,
                stdin=exports,
                stdout=stdout,
                stderr=stderr,
            )
        running = ThroughGlexec(self, process, record, sandbox, proxy, owner)
        running.await_start(stderr)
        return running

    def has_started(self, sandbox: Path, proxy: Path) -> bool:
        """Whether the payload's wrapper has left its mark; asked where an exit code could be either's."""
        argv = ["/bin/sh", "-c", 'test -e "$0"', str(sandbox / STARTED_MARK)]
        return self._tool(argv, proxy, cwd=sandbox.parent).finish() == 0

    def kill_as_owner(self, pids: Sequence[int], sandbox: Path, proxy: Path) -> None:
        """SIGKILL to processes of the target, which this account may not signal itself."""
        self._tool(["/bin/kill", "-KILL", *map(str, pids)], proxy, cwd=sandbox.parent).finish()

    def _environ(self, proxy: Path, target: Optional[Path] = None) -> dict[str, str]:
        return {
            "PATH": PATH,
            contract.CLIENT_CERT: str(proxy),
            contract.SOURCE_PROXY: str(proxy),
            contract.TARGET_PROXY: str(target) if target else contract.NO_TARGET_PROXY,
        }

    def _tool(self, argv: Sequence[str], proxy: Path, *, cwd: Path, stdin: Optional[IO[bytes]] = None) -> Tool:
        return _CheckedTool([self._glexec, *argv], env=self._environ(proxy), cwd=cwd, stdin=stdin)

    def _finish(self, tool: Tool) -> None:
        code = tool.finish()
        if code != 0:
            raise IdentitySwitchError(f"a command through the switch ended with {code}: {tool.message}")

    def _check_sandbox(self, sandbox: Path) -> int:
        """The uid that owns the sandbox, seen from outside: a directory, private, and not ours."""
        try:
            status = os.lstat(sandbox)
        except OSError as error:
            raise IdentitySwitchError(f"the sandbox {sandbox}: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) != 0o700:
            raise IdentitySwitchError(f"the sandbox {sandbox} is not a directory of mode 0700")
        _check_other(status.st_uid)
        return status.st_uid


class _CheckedTool(Tool):
    def finish(self) -> int:
        code = super().finish()
        if code in (contract.CLIENT_ERROR, contract.INTERNAL_ERROR, contract.NOT_AUTHORISED, contract.EXEC_FAILED):
            raise contract.switch_error(code, self.message)
        return code


class ThroughGlexec:
    """A payload behind a launcher, with the launcher's record where the launcher is ours."""

    def __init__(
        self, switcher: GlexecSwitcher, process: Process, record: Path, sandbox: Path, proxy: Path, owner: int
    ) -> None:
        self._switcher = switcher
        self._process = process
        self._record = record
        self._sandbox = sandbox
        self._proxy = proxy
        self._owner = owner
        self._outcome: Optional[PayloadOutcome] = None
        self._last_usage = Usage(0.0, 0)
        self.account = Account(_name_of(owner), owner, ())
        self.identity_proven = False

    def await_start(self, stderr: Path) -> None:
        """Return when the payload runs under the sandbox's owner, seen from outside.

        Raises:
            IdentitySwitchError: it has not started, or runs as somebody else; it is killed then.
        """
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self._prove():
                return
            if self._process.wait(0.02) is not None:
                self._check_early_end(stderr)
                return
        self._process.send(signal.SIGKILL)
        self._process.wait(_ENDED_S)
        raise IdentitySwitchError(f"the launcher did not start the payload within {_START_S} s", transient=True)

    def wait(self, timeout_s: float) -> Optional[PayloadOutcome]:
        if self._outcome is None and self._process.wait(timeout_s) is not None:
            self._outcome = self._conclude()
        return self._outcome

    def kill(self, grace_s: float) -> None:
        self._process.send(signal.SIGTERM)
        if self._process.wait(grace_s) is None:
            if self._event("started") is None:
                self._kill_foreign()
            self._process.send(signal.SIGKILL)
            self._process.wait(_ENDED_S)
        self._event("ended", _ENDED_S)

    def usage(self) -> Usage:
        root = self._root()
        seen = usage_of(root) if root is not None and self._process.code is None else Usage(0.0, 0)
        used = self._event("used", last=True) or {}
        read, written = (int(used.get(name, 0)) for name in ("read_bytes", "written_bytes"))
        self._last_usage = Usage(max(seen.cpu_s, self._last_usage.cpu_s), seen.rss_kib, seen.processes, read, written)
        return self._last_usage

    def processes(self) -> list[ProcessSeen]:
        root = self._root() if self._process.code is None else None
        return [] if root is None else descendants(root)

    def _prove(self) -> bool:
        """Look at the payload's process from outside; true once its account is known."""
        started = self._event("started")
        pids = [int(started["pid"])] if started else tree(self._process.pid)[1:]
        for pid in pids:
            ids = ids_of(pid)
            account = ids.account(_name_of(ids.uids[0])) if ids else None
            if account is not None and account.uid == self._owner:
                self.account, self.identity_proven = account, True
                return True
        if started and int(started["uid"]) == self._owner and ids_of(pids[0]) is None:
            # Too short-lived to be looked at: root's word, which agrees with the sandbox's owner.
            self.account = Account(str(started["account"]), self._owner, (int(started["gid"]),))
            self.identity_proven = True
            return True
        if started and ids_of(pids[0]) is not None:
            self.kill(0)
            raise IdentitySwitchError(f"the payload's process {pids[0]} does not run as uid {self._owner}")
        return False

    def _check_early_end(self, stderr: Path) -> None:
        """The launcher has ended: a short payload, or no payload at all."""
        if self._prove():
            return
        refused = self._event("refused")
        if refused is not None:
            raise contract.switch_error(int(refused["exit_code"]), str(refused["reason"]))
        code = contract.shell_code(self._process.code or 0)
        if code in (contract.CLIENT_ERROR, contract.INTERNAL_ERROR, contract.NOT_AUTHORISED):
            raise contract.switch_error(code, _last_line(stderr))
        if not self._switcher.has_started(self._sandbox, self._proxy):
            raise contract.switch_error(code, _last_line(stderr))

    def _conclude(self) -> PayloadOutcome:
        process = self._process
        ended = self._event("ended", _ENDED_S if self._event("started") else 0)
        wall_s = (process.ended_at or time.monotonic()) - process.started_at
        cpu_s, rss_kib = 0.0, 0
        if process.usage is not None:
            cpu_s, rss_kib = process.usage.ru_utime + process.usage.ru_stime, process.usage.ru_maxrss
        code = contract.shell_code(process.code or 0)
        if ended is not None:
            code, wall_s = int(ended["exit_code"]), float(ended["wall_s"])
            cpu_s, rss_kib = float(ended["cpu_s"]), int(ended["max_rss_kib"])
        elif self._event("started") is not None:
            code = 128 + signal.SIGKILL  # the launcher was killed, and its payload with it
        return PayloadOutcome(code, contract.signal_of(code), wall_s, cpu_s, rss_kib, self.account, True)

    def _event(self, name: str, patience_s: float = 0, *, last: bool = False) -> Optional[dict[str, Any]]:
        """The first or the last such line of the launcher's record, waited for where it must come."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                lines = self._record.read_text(encoding="ascii").splitlines(keepends=True)
            except FileNotFoundError:
                lines = []
            for line in reversed(lines) if last else lines:
                if line.endswith("\n") and json.loads(line)["event"] == name:
                    event: dict[str, Any] = json.loads(line)
                    return event
            if time.monotonic() >= deadline or not lines:
                return None
            time.sleep(0.05)

    def _root(self) -> Optional[int]:
        """The top of the payload's tree: the first process of its namespace, or the launcher."""
        started = self._event("started")
        if started is None:
            return self._process.pid
        ids = ids_of(int(started["pid"]))
        return ids.parent if ids is not None and ids.parent > 1 else None

    def _kill_foreign(self) -> None:
        """A launcher that is not ours leaves its payload behind when it is killed: kill that first, as its owner."""
        others = [pid for pid in tree(self._process.pid)[1:] if (ids := ids_of(pid)) and ids.uids[0] == self._owner]
        if others:
            self._switcher.kill_as_owner(others, self._sandbox, self._proxy)


def _exports(env: Mapping[str, str]) -> IO[bytes]:
    """A nameless file of shell assignments; its last one says that it is whole."""
    bad = [name for name, value in env.items() if not _VARIABLE.fullmatch(name) or "\0" in value]
    if bad:
        raise RequestError(f"{bad[0][:100]!r} cannot be an environment variable of a payload")
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    for name, value in env.items():
        file.write(b"export " + name.encode() + b"=" + os.fsencode(shlex.quote(value)) + b"\n")
    file.write(b"AIRPANDA_ENV=complete\n")
    file.seek(0)
    return file


def _check_other(uid: int) -> None:
    if uid in (0, os.geteuid(), os.getuid()):
        raise IdentitySwitchError(
            f"the launcher did not switch: the payload would run as uid {uid}; the site must correct its mapping",
            exit_code=contract.NOT_AUTHORISED,
        )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 500))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""
