"""A mark on all processes of one launch that none of them can take off, for an account that has no other wall.

It is a hard limit that means nothing to them: a process may lower it and never raise it, and its children inherit it.
So whatever has left its parent, its session and its directory is still found.

Source: setrlimit(2), RLIMIT_RTTIME: it counts for real-time scheduling only. proc(5), /proc/PID/limits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import time
from collections.abc import Container
from pathlib import Path

_LINE, LOCKS = "Max realtime timeout", "Max file locks"
"""RLIMIT_LOCKS has no effect since Linux 2.4.25, and a shell can set it."""
_BITS = 40
_LAUNCHES = 1 << 20  # in one sandbox: a look at it twice a minute lasts for a year


def marks_of(sandbox: Path) -> range:
    """The marks of a sandbox's launches, one each: the same for whoever cleans up, within this account's own limit."""
    digest = hashlib.sha256(os.fsencode(sandbox)).digest()
    _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    room = 1 << 62 if hard == resource.RLIM_INFINITY else hard
    first = int.from_bytes(digest[: _BITS // 8], "big") % max(1, min(1 << _BITS, room // 2 // _LAUNCHES)) * _LAUNCHES
    return range(room - first - _LAUNCHES, room - first)


def marked(marks: Container[int], line: str = _LINE) -> list[int]:
    """The living processes with one of these marks in this limit; any account's."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, StopIteration):  # gone
                lines = Path(f"/proc/{name}/limits").read_text(encoding="ascii", errors="replace").splitlines()
                hard = next(each for each in lines if each.startswith(line))[len(line) :].split()[1]
                if hard.isdigit() and int(hard) in marks and not _is_zombie(name):
                    found.append(int(name))
    return found


def end_marked(marks: Container[int], patience_s: float = 10.0) -> bool:
    """SIGKILL to all of them, until there is none; False where some do not end."""
    deadline = time.monotonic() + patience_s
    while pids := marked(marks):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _is_zombie(name: str) -> bool:
    return Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
