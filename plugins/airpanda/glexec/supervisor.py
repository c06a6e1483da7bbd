"""The process above a payload that has no PID namespace: it adopts what the payload lets go of, and ends all of it.

A program of its own: ``python -IS supervisor.py MARK FENCED COMMAND [ARGUMENT...]``, standard library only. The mark is
a limit by which its starter finds all of it again (``marks``), should the payload kill this one. FENCED is 1 where the
command is bubblewrap, which tells a payload's end by signal with a code: where it is killed itself, so is this one. The
exit code is the payload's (128 + n for signal n, 126 where it cannot be executed). SIGTERM and SIGINT are passed on,
SIGUSR1 ends everything at once, and so does the death of whoever started it.

Source: prctl(2), PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)


def main(mark: int, fenced: bool, argv: Sequence[str]) -> int:
    """Run the command to its end, and everything it has started."""
    resource.setrlimit(resource.RLIMIT_RTTIME, (mark, mark))
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1), 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    if os.getppid() != parent:
        return 128 + signal.SIGKILL
    payload = os.fork()
    if payload == 0:
        _become(argv)
    status = _watch(payload)
    while True:
        for pid in _descendants():
            _kill(pid, signal.SIGKILL)
        try:
            pid, ended = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if pid == payload:
            status = ended
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and fenced:
        os.kill(os.getpid(), signal.SIGKILL)
    return 128 - code if code < 0 else code


def _become(argv: Sequence[str]) -> NoReturn:
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
            signal.signal(number, signal.SIG_DFL)
        os.execv(argv[0], list(argv))  # noqa: S606
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode(errors="replace"))
    finally:
        os._exit(126)


def _watch(payload: int) -> int:
    """The payload's wait status, or that of a kill where it must end at once."""
    while True:
        number = signal.sigwait(_WATCHED)
        if number == signal.SIGUSR1:
            return int(signal.SIGKILL)
        if number != signal.SIGCHLD:
            _kill_group(payload, number)
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == payload:
                return status
            if pid == 0:
                break


def _descendants() -> list[int]:
    """All processes below this one. Whatever loses its parent gets this one as its parent, so nothing gets out."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(name))
    found = [os.getpid()]
    for pid in found:
        found.extend(children.get(pid, []))
    return found[1:]


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        _kill(pid, number)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2] == "1", sys.argv[3:]))
