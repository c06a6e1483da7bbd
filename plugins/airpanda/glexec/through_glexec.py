"""Running a payload through any launcher that keeps gLExec's contract: ours or a site's real one."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import re
import secrets
import signal
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Optional

from airpanda.core.errors import IdentitySwitchError
from airpanda.core.identity import Account
from airpanda.core.secret import Secret
from airpanda.glexec import contract
from airpanda.glexec.gate import Gate, exports
from airpanda.glexec.marks import LOCKS, marked
from airpanda.glexec.ports import LaunchRecord, PayloadOutcome, ProcessSeen, Usage
from airpanda.glexec.proctree import began, command_of, descendants, ids_of, tree, usage_of
from airpanda.glexec.running import Process
from airpanda.glexec.sandboxes import PATH, SandboxTools, Tool, open_path
from airpanda.glexec.told import read_record

STARTED_MARK = ".airpanda-started"
_PROXY_NAME = ".x509up"
_START_S = 120
_ENDED_S = 10
_TRIES = 3
# The environment comes by stdin, because argv is seen by everybody and GLEXEC_* ends in logs, and it comes only when
# the wrapper's account was seen from outside. "complete" is its last line: half an environment is none. Before the
# mark the wrapper fails with 126 and nothing has run, after it every code is the payload's. (The trap is for a shell
# that ends itself: dash with 2 where it cannot fork. "echo" is no special builtin, so that it does not where it cannot
# write the mark.) The mark is a line with the launch's own number: other launches in the sandbox leave theirs.
_START = (
    "trap 'exit 126' 0; unset AIRPANDA_ENV AIRPANDA_LAUNCH\n"
    'cd "$0" && eval "$(cat)" && test "$AIRPANDA_ENV" = complete && echo "$AIRPANDA_LAUNCH" >>'
    + STARTED_MARK
    + " || exit 126\n"
    'unset AIRPANDA_ENV AIRPANDA_LAUNCH; trap - 0; exec "$@" </dev/null'
)
_HAS_STARTED = 'test -f "$0" && exec grep -qxF -- "$1" "$0"'
_LAUNCHERS_OWN = (contract.CLIENT_ERROR, contract.INTERNAL_ERROR, contract.NOT_AUTHORISED)
_UNSEEN_S = 0.5
_LOOK_S, _MAX_LOOK_S = 0.005, 0.1
_MARK_BITS = 60
_OUTER, _INNER_BYTES = "payload-", 8


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
        outer = Path(tempfile.mkdtemp(prefix=_OUTER, dir=parent))
        open_path(outer)
        inner = outer / secrets.token_hex(_INNER_BYTES)
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
        mark, given = secrets.randbits(_MARK_BITS), Secret(proxy.read_bytes())
        gate = Gate(exports({"PATH": PATH, **env, **settings}, mark))
        with gate.closed_at_failure(), gate.entrance as entrance:
            process = Process(
                [self._glexec, "/bin/sh", "-c", _START, str(sandbox), *argv],
                env=environ,
                cwd=sandbox.parent,
                stdin=entrance,
                stdout=stdout,
                stderr=stderr,
            )
            running = ThroughGlexec(self, process, gate, mark, record, sandbox, proxy, given, owner)
            entrance.close()
            running.await_start(stderr)
        return running

    def has_started(self, mark: int, sandbox: Path, proxy: Path) -> bool:
        """Whether this launch's wrapper has left its mark; asked where an exit code could be either's."""
        argv = ["/bin/sh", "-c", _HAS_STARTED, str(sandbox / STARTED_MARK), str(mark)]
        return self._tool(argv, proxy, cwd=sandbox.parent).finish() == 0

    def kill_as_owner(self, name: str, pids: Sequence[int], sandbox: Path, proxy: Path) -> None:
        """A signal to processes of the target, which this account may not signal itself."""
        self._tool(["/bin/kill", f"-{name}", *map(str, pids)], proxy, cwd=sandbox.parent).finish()

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
        self,
        switcher: GlexecSwitcher,
        process: Process,
        gate: Gate,
        mark: int,
        record: Path,
        sandbox: Path,
        proxy: Path,
        given: Secret[bytes],
        owner: int,
    ) -> None:
        self._switcher = switcher
        self._process = process
        self._gate = gate
        self._mark = mark
        self._pid, self._began = 0, ""
        self._killed = False
        self._record = record
        self._sandbox = sandbox
        self._proxy = proxy
        self._given = given
        self._owner = owner
        self._outcome: Optional[PayloadOutcome] = None
        self._last_usage = Usage(0.0, 0)
        self.account = Account(_name_of(owner), owner, ())
        self.record = LaunchRecord("glexec")
        self.identity_proven = False

    def await_start(self, stderr: Path) -> None:
        """Let the payload go once its wrapper runs under the sandbox's owner, seen from outside.

        Raises:
            IdentitySwitchError: it does not, or would as somebody else. The command was not reached.
        """
        deadline, pause_s = time.monotonic() + _START_S, _LOOK_S
        while time.monotonic() < deadline:
            if self._prove():
                self._let_go()
                return
            if self._process.wait(pause_s) is not None:
                raise self._refusal(stderr)
            pause_s = min(1.2 * pause_s, _MAX_LOOK_S)
        self._gate.close()
        self.kill(0)
        raise IdentitySwitchError(f"the launcher did not start the payload within {_START_S} s", transient=True)

    def wait(self, timeout_s: float) -> Optional[PayloadOutcome]:
        if self._outcome is None and self._process.wait(timeout_s) is not None:
            self._outcome = self._conclude()
        return self._outcome

    def kill(self, grace_s: float) -> None:
        self._killed = True
        self._process.send(signal.SIGTERM)
        if self._pid == self._process.pid:  # a launcher that became the payload: this account may not signal it
            with contextlib.suppress(IdentitySwitchError):  # it ends without grace then
                self._switcher.kill_as_owner("TERM", [self._pid], self._sandbox, self._proxy)
        if self._process.wait(grace_s) is None:
            if self._event("started") is None:
                self._end_remains()
            self._process.send(signal.SIGKILL)
            self._process.wait(_ENDED_S)
        self._event("ended", _ENDED_S)

    def usage(self) -> Usage:
        root = self._root()
        seen = usage_of(root) if root is not None and self._process.code is None else Usage(0.0, 0)
        used = self._event("used", last=True) or {}
        read, written = (int(used.get(name, 0)) for name in ("read_bytes", "written_bytes"))
        # Only root may look into the payload's memory; before its first look that is worth waiting for.
        looks = "pss_kib" in used or (not used and self._event("started") is not None)
        self._last_usage = Usage(
            max(seen.cpu_s, self._last_usage.cpu_s),
            seen.rss_kib,
            seen.processes,
            read,
            written,
            largest_kib=seen.largest_kib,
            pss_kib=int(used["pss_kib"]) if "pss_kib" in used else None,
            pss_at=float(used.get("at", 0.0)) if looks else None,
        )
        return self._last_usage

    def processes(self) -> list[ProcessSeen]:
        root = self._root() if self._process.code is None else None
        return [] if root is None else descendants(root)

    def _prove(self) -> bool:
        """Look at the wrapper from outside; true once its account is known."""
        started = self._event("started")
        if started and not self.record.dn:
            self._believe(started)
        for pid in [int(started["pid"])] if started else self._wrappers():
            ids = ids_of(pid)
            account = ids.account(_name_of(ids.uids[0])) if ids else None
            if account is not None and account.uid == self._owner:
                if not started and self._record.exists():
                    return False  # ours, which opens its record before it forks: what is in it is on the way
                self._pid, self._began = pid, began(pid)
                self.account, self.identity_proven = account, True
                return True
            if started and ids is not None:
                self._gate.close()
                self.kill(0)
                raise IdentitySwitchError(f"the payload's process {pid} does not run as uid {self._owner}")
        if started and int(started["uid"]) == self._owner and self._waits_unseen():
            # In another PID namespace than ours: root's word, which agrees with the sandbox's owner.
            self.account = Account(str(started["account"]), self._owner, (int(started["gid"]),))
            self.identity_proven = True
        return self.identity_proven

    def _let_go(self) -> None:
        try:
            self._gate.open()
        except IdentitySwitchError:
            self.kill(0)
            raise

    def _believe(self, started: Mapping[str, Any]) -> None:
        """Take the record as it is, if it is about the proxy as it was or as a renewal has left it meanwhile."""
        try:
            self.record = read_record(started, [self._given, Secret(self._proxy.read_bytes())])
        except IdentitySwitchError:
            self._gate.close()
            self.kill(0)
            raise

    def _wrappers(self) -> list[int]:
        """Processes of a launcher that names none itself; what else it does as the owner is not the wrapper."""
        script = _START.encode()
        return [pid for pid in tree(self._process.pid) if script in command_of(pid)]

    def _waits_unseen(self) -> bool:
        """The wrapper waits for its environment; so one that is not seen while the launcher lives is elsewhere."""
        return self._process.wait(_UNSEEN_S) is None

    def _refusal(self, stderr: Path) -> IdentitySwitchError:
        """Why the launcher has ended before the payload could go."""
        self._gate.close()
        refused = self._event("refused")
        if refused is not None:
            return contract.switch_error(int(refused["exit_code"]), str(refused["reason"]))
        code, last = contract.shell_code(self._process.code or 0), _last_line(stderr)
        if code == contract.EXEC_FAILED:  # the wrapper's: behind a closed gate no command can have been tried
            return contract.switch_error(
                contract.INTERNAL_ERROR, f"the sandbox cannot be entered or written to: {last}"
            )
        return contract.switch_error(code, last)

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
        lost = self._loss(ended)
        if lost:
            code, lost = contract.LOST, f"{lost}; {self._end_remains()}"
        elif code == contract.EXEC_FAILED and not self._has_started():
            raise contract.switch_error(contract.INTERNAL_ERROR, "the sandbox cannot be entered or written to")
        return PayloadOutcome(code, contract.signal_of(code), wall_s, cpu_s, rss_kib, self.account, True, lost)

    def _has_started(self) -> bool:
        return self._switcher.has_started(self._mark, self._sandbox, self._proxy)

    def _loss(self, ended: Optional[Mapping[str, Any]]) -> str:
        """Why nobody saw the payload end, or nothing: it was seen, or it was we who ended it."""
        code = self._process.code or 0
        if self._killed:
            return ""
        if ended is not None:
            return str(ended.get("lost", ""))
        if code < 0 and self._pid != self._process.pid:
            return f"the launcher was killed (signal {-code})"
        if code == contract.LOST and self._event("started"):
            return "the launcher was killed"
        return f"the launcher itself ended with {code}" if code in _LAUNCHERS_OWN else ""

    def _end_remains(self) -> str:
        """End what a launcher leaves that has no namespace for its payload; ours has, and its kernel takes a moment."""
        deadline = time.monotonic() + _ENDED_S
        while left := self._remains():
            if time.monotonic() > deadline:
                return f"processes {left} of the payload still run, and the site must end them"
            if self._event("started") is None:
                with contextlib.suppress(IdentitySwitchError):  # what is left then is told
                    self._switcher.kill_as_owner("KILL", left, self._sandbox, self._proxy)
            time.sleep(0.05)
        return "the payload's processes are gone"

    def _remains(self) -> list[int]:
        """Living processes of the payload, wherever they went; a number that is somebody else's by now is none."""
        found = {self._pid} if self._pid and began(self._pid) == self._began else set()
        if self._event("started") is None:
            roots = found if self._process.code is not None else {*found, self._process.pid}
            found = {*marked({self._mark}, LOCKS), *(pid for root in roots for pid in tree(root))}
        return sorted(pid for pid in found if (ids := ids_of(pid)) and ids.uids[0] == self._owner)

    def _event(self, name: str, patience_s: float = 0, *, last: bool = False) -> Optional[dict[str, Any]]:
        """The first or the last such line of the launcher's record, waited for where it must come."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                lines = self._record.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            except FileNotFoundError:
                lines = []
            for line in reversed(lines) if last else lines:
                event = _read_event(line)
                if event.get("event") == name:
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


def _read_event(line: str) -> dict[str, Any]:
    """A line of a record; empty where it is none, or not yet whole."""
    try:
        event = json.loads(line) if line.endswith("\n") else {}
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def is_sandbox(path: Path) -> bool:
    """Whether it has the names of one that ``make_sandbox`` has made."""
    inner = re.fullmatch(f"[0-9a-f]{{{2 * _INNER_BYTES}}}", path.name)
    return inner is not None and path.parent.name.startswith(_OUTER)


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
