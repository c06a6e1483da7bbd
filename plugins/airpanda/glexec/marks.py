"""A mark on all processes of one payload that none of them can take off, for an account that has no other wall.

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
from pathlib import Path

_LINE = "Max realtime timeout"
_BITS = 48


def mark_of(sandbox: Path) -> int:
    """The mark of a sandbox's payload: the same for whoever cleans up, and within this account's own limit."""
    digest = hashlib.sha256(os.fsencode(sandbox)).digest()
    _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    room = 1 << 62 if hard == resource.RLIM_INFINITY else hard
    return room - 1 - int.from_bytes(digest[: _BITS // 8], "big") % min(1 << _BITS, max(1, room // 2))


def marked(mark: int) -> list[int]:
    """The living processes with this mark; any account's."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, StopIteration):  # gone
                lines = Path(f"/proc/{name}/limits").read_text(encoding="ascii", errors="replace").splitlines()
                words = next(line for line in lines if line.startswith(_LINE))[len(_LINE) :].split()
                if words[1] == str(mark) and not _is_zombie(name):
                    found.append(int(name))
    return found


def end_marked(mark: int, patience_s: float = 10.0) -> bool:
    """SIGKILL to all of them, until there is none; False where some do not end."""
    deadline = time.monotonic() + patience_s
    while pids := marked(mark):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _is_zombie(name: str) -> bool:
    return Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
