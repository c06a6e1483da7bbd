"""A cgroup v2 for one payload, where the kernel has them: exact CPU time, a limit of processes, a kill of all.

It is a help, never a condition: the PID namespace contains a payload without it too. The payload's process is born
in it; the launcher's own processes stay outside.

Source: Documentation/admin-guide/cgroup-v2.rst of Linux.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

_MOUNTS, _OWN = Path("/proc/self/mountinfo"), Path("/proc/self/cgroup")
_EMPTY_S = 5.0


_PREFIX = "airpanda-payload-"


class PayloadCgroup:
    """One payload's cgroup. ``directory`` is its open directory, in which a process can be made.

    A lock on it lasts as long as a process of the run, so that what a crash leaves can be told apart.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self.directory, fcntl.LOCK_SH)
        self._before = 0.0

    @classmethod
    def make(cls, *, max_processes: int) -> Optional[PayloadCgroup]:
        """A new one below this process's own, or None where that cannot be."""
        try:
            parent = _own_cgroup()
            if parent is None:
                return None
            with _locked(parent):
                _sweep(parent)
                path = parent / f"{_PREFIX}{os.urandom(8).hex()}"
                path.mkdir()
                made = cls(path)
        except OSError:
            return None
        with contextlib.suppress(OSError):  # the pids controller is not delegated: RLIMIT_NPROC holds alone
            (path / "pids.max").write_text(str(max_processes))
        return made

    def begin(self) -> None:
        """What was used until now was the launcher's work."""
        self._before = self._read_cpu()

    def cpu_s(self) -> float:
        """CPU seconds of everything that ever was in it since ``begin``."""
        return self._read_cpu() - self._before

    def kill(self) -> None:
        """Kill all of it (Linux 5.14)."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")

    def remove(self) -> None:
        """Kill what is left and remove it; one that stays non-empty is left to the kernel's administrator."""
        self.kill()
        os.close(self.directory)
        deadline = time.monotonic() + _EMPTY_S
        while time.monotonic() < deadline:
            try:
                self.path.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.01)

    def _read_cpu(self) -> float:
        lines = (self.path / "cpu.stat").read_text(encoding="utf-8").splitlines()
        usage = next(line for line in lines if line.startswith("usage_usec "))
        return int(usage.split()[1]) / 1e6


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Against a sweep between the making of a cgroup and its lock."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove what launchers have left that were killed."""
    for path in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, not empty, or gone by now
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.rmdir()
            finally:
                os.close(descriptor)


def _own_cgroup() -> Optional[Path]:
    """The directory of this process's cgroup in a cgroup2 hierarchy."""
    own = next((line[3:].rstrip("\n") for line in _OWN.open() if line.startswith("0::")), None)
    mount = next((fields[4] for fields in map(str.split, _MOUNTS.open()) if "cgroup2" in fields[6:]), None)
    if own is None or mount is None or ".." in own.split("/"):
        return None
    return Path(mount) / own.strip("/")
