"""Start programs so that none outlives the demonstration: neither Ctrl-C, nor an error, nor ``kill -9`` leaves one.

Three nets, each enough for most cases:

1. The demonstration is a *child subreaper* (prctl(2)): whatever it started, and what those started in turn, stays its
   descendant, also when a parent in between dies. Stopping means stopping all descendants.
2. It runs below a second process of the same kind, the bootstrap, which does the same when the first one is killed.
3. Every program carries a mark in its environment or its path, and the next start ends what still carries it.

Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from airpanda_demo.errors import DemoError

MARK = "AIRPANDA_DEMO_MARK"
TERM_PATIENCE_S = 5.0
KILL_PATIENCE_S = 5.0
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1
_LOG_TAIL_LINES = 15


def become_subreaper() -> None:
    """Adopt orphans among this process's descendants from now on. Source: prctl(2), PR_SET_CHILD_SUBREAPER."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(sign: signal.Signals, parent: int) -> None:
    """Get a signal when the parent ends; at once when it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, sign)
    if os.getppid() != parent:
        os.kill(os.getpid(), sign)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def guarded(argv: Sequence[str]) -> list[str]:
    """The same program such that it, and what it starts, ends with this process or when it is told to terminate."""
    home = str(Path(__file__).resolve().parents[1])
    return [sys.executable, "-I", "-c", _GUARD, home, str(os.getpid()), *argv]


_GUARD = """
import sys
sys.path.insert(0, sys.argv[1])
from airpanda_demo.processes import guard
sys.exit(guard(int(sys.argv[2]), sys.argv[3:]))
"""


def guard(parent: int, argv: Sequence[str]) -> int:
    """Run a program as ``guarded`` promises; its exit status."""

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    become_subreaper()
    signal.signal(signal.SIGTERM, stop)
    die_with_parent(signal.SIGTERM, parent)
    try:
        return subprocess.Popen(argv).wait()
    finally:
        end_descendants(os.getpid(), patience_s=2.0)


@dataclass(frozen=True)
class Process:
    """A line of /proc: with ``start`` (clock ticks since boot) the pid names one process and no later one."""

    pid: int
    parent: int
    start: int
    state: str


def processes() -> dict[int, Process]:
    """All processes that can be seen now, by pid. Source: proc(5), stat."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := _process(int(name))) is not None:
            found[process.pid] = process
    return found


def _process(pid: int) -> Process | None:
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(pid, parent=int(words[1]), start=int(words[19]), state=words[0].decode())


def descendants(root: int) -> list[Process]:
    """Everything below a process, children before their children; zombies are left out."""
    everything = processes()
    children: dict[int, list[Process]] = {}
    for process in everything.values():
        children.setdefault(process.parent, []).append(process)
    found, waiting = [], [root]
    while waiting:
        for process in children.get(waiting.pop(0), []):
            waiting.append(process.pid)
            if process.state != "Z":
                found.append(process)
    return found


def end_descendants(root: int, *, patience_s: float = TERM_PATIENCE_S) -> int:
    """Stop all descendants: SIGTERM, and SIGKILL for what is left. Returns how many had to be stopped."""
    return _end(lambda: descendants(root), patience_s)


def end_marked(directory: Path, *, patience_s: float = TERM_PATIENCE_S) -> int:
    """Stop what an earlier demonstration of this directory left behind. Returns how many processes."""
    return _end(lambda: marked(directory), patience_s)


def marked(directory: Path) -> list[Process]:
    """Processes that carry this directory's mark, or run one of its programs, and what is below them.

    This process and its ancestors are never among them.
    """
    everything = processes()
    own = set(_ancestors(os.getpid(), everything))
    found: dict[int, Process] = {}
    for process in everything.values():
        if process.pid not in own and process.state != "Z" and _is_marked(process.pid, directory):
            found[process.pid] = process
            found.update((below.pid, below) for below in descendants(process.pid) if below.pid not in own)
    return list(found.values())


def _ancestors(pid: int, everything: Mapping[int, Process]) -> Iterator[int]:
    while pid in everything:
        yield pid
        pid = everything[pid].parent


def _is_marked(pid: int, directory: Path) -> bool:
    mark = f"{MARK}={directory}".encode()
    programs = tuple(os.fsencode(directory / name) + b"/" for name in ("venv", "software"))
    try:
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(programs):
            return True
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile, or another account's: not ours
        return False


def _end(find: Callable[[], Sequence[Process]], patience_s: float) -> int:
    seen: set[tuple[int, int]] = set()
    for sign, patience in ((signal.SIGTERM, patience_s), (signal.SIGKILL, KILL_PATIENCE_S)):
        told: set[tuple[int, int]] = set()
        deadline = time.monotonic() + patience
        while left := find():
            for process in left:
                if (process.pid, process.start) not in told:
                    told.add((process.pid, process.start))
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(process.pid, sign)
            seen |= told
            if time.monotonic() > deadline:
                break
            _reap()
            time.sleep(0.05)
        else:
            return len(seen)
    return len(seen)


def _reap() -> None:
    """Collect orphans that came to this process; children with a Popen are collected by it, which copes."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@dataclass
class Service:
    """One program of the demonstration. ``ready`` answers at once; it is asked again until it says True.

    A program that puts itself into the background leaves its pid in ``daemon_pid``.
    """

    name: str
    argv: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    timeout_s: float = 90.0
    daemon_pid: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it in a session of its own, with its output in the log."""
        with open(self.log, "ab", opener=_private) as log:
            self.process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environment),
                cwd=self.log.parent,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise DemoError with the end of the log when the program has ended by itself."""
        code = None if self.process is None else self.process.poll()
        if self.process is not None and (code is None or (code == 0 and self._daemon_runs())):
            return
        how = "" if code is None else f" with code {code}"
        raise DemoError(f"{self.name} ended{how}; the end of {self.log}:\n{tail(self.log)}")

    def _daemon_runs(self) -> bool:
        if self.daemon_pid is None:
            return False
        try:
            pid = int(self.daemon_pid.read_text())
        except (OSError, ValueError):  # not written yet: the readiness time limit decides
            return not self.ready()
        return _process(pid) is not None

    @property
    def runs(self) -> bool:
        """Whether the started process itself has not ended."""
        return self.process is not None and self.process.poll() is None

    def terminate(self) -> None:
        """Ask it to stop; its children follow or are stopped with all descendants."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()


def run_step(name: str, argv: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Service:
    """Start a program that does one thing and ends; see ``wait_for_step``."""
    step = Service(name, argv, log, environment, ready=lambda: True)
    step.start()
    return step


def wait_for_step(step: Service, timeout_s: float) -> None:
    """Raise DemoError when it fails or takes too long, with the end of its log."""
    try:
        code = None if step.process is None else step.process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise DemoError(f"{step.name} took over {timeout_s:.0f} s; the end of {step.log}:\n{tail(step.log)}") from None
    if code != 0:
        raise DemoError(f"{step.name} failed with code {code}; the end of {step.log}:\n{tail(step.log)}")


def wait_until_ready(services: Sequence[Service], *, told: Callable[[str], None], poll_s: float = 0.1) -> None:
    """Wait for all of them.

    Args:
        told: called once with the name of each service that has become ready.

    Raises:
        DemoError: one ended or did not become ready in its time; with the end of its log.
    """
    start = time.monotonic()
    waiting = list(services)
    while waiting:
        for service in list(waiting):
            service.check()
            if service.ready():
                waiting.remove(service)
                told(service.name)
            elif time.monotonic() - start > service.timeout_s:
                raise DemoError(
                    f"{service.name} is not ready after {service.timeout_s:.0f} s; "
                    f"the end of {service.log}:\n{tail(service.log)}"
                )
        if waiting:
            time.sleep(poll_s)


def tail(log: Path, lines: int = _LOG_TAIL_LINES) -> str:
    """The last lines of a log, indented."""
    try:
        text = log.read_bytes()[-16384:].decode(errors="replace")
    except OSError as error:
        return f"    (cannot be read: {error})"
    return "\n".join(f"    {line[:300]}" for line in text.splitlines()[-lines:]) or "    (empty)"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
