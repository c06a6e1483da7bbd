"""What an account that nobody uses any more has left behind, and its removal before somebody else gets its number."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from airpanda.core.identity import Account
from airpanda.glexec.launcher import kernel
from airpanda.glexec.launcher.identity import open_as

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def has_processes(uid: int) -> bool:
    """Whether any process on this machine has the uid as one of its ids. A process that cannot be read counts."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/status", encoding="ascii", errors="replace") as file:
                ids = next(line for line in file if line.startswith("Uid:")).split()[1:]
        except (FileNotFoundError, ProcessLookupError):
            continue
        except (OSError, StopIteration):
            return True
        if str(uid) in ids:
            return True
    return False


def clear_keyrings(uid: int) -> bool:
    """Whether the kernel now holds no key for this uid; its processes must have ended. To be called by root."""

    def clear() -> int:
        kernel.clear_own_keyrings()
        return os.open(os.devnull, os.O_RDONLY)

    try:
        os.close(open_as(Account(str(uid), uid, (uid,)), clear))
    except OSError:
        return False
    return True


def remove_files(number: int, directories: Iterable[Path]) -> bool:
    """Remove all that has this uid or gid below these directories; whether nothing of it is left.

    To be called by root. No symbolic link is followed, also when somebody moves directories about meanwhile. Another
    file system below is looked into too. A directory that holds somebody else's file stays, and then the answer is
    False.
    """
    clean = True
    for directory in directories:
        try:
            descriptor = os.open(directory, _DIRECTORY)
        except FileNotFoundError:
            continue
        except OSError:
            return False
        try:
            clean = _clear(descriptor, number) and clean
        finally:
            os.close(descriptor)
    return clean


def _clear(descriptor: int, number: int) -> bool:
    """Depth is bounded by the open descriptors that a process may have: beyond that it is "not clean"."""
    try:
        names = os.listdir(descriptor)
    except OSError:
        return False
    cleaned = [_clear_entry(descriptor, name, number) for name in names]
    return all(cleaned)


def _clear_entry(parent: int, name: str, number: int) -> bool:
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        is_directory, is_its = stat.S_ISDIR(status.st_mode), number in (status.st_uid, status.st_gid)
        clean = not is_directory or _clear_inside(parent, name, number)
        if is_its and is_directory:
            os.rmdir(name, dir_fd=parent)
        elif is_its:
            os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return True
    except (OSError, RecursionError):
        return False
    return clean


def _clear_inside(parent: int, name: str, number: int) -> bool:
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        return _clear(descriptor, number)
    finally:
        os.close(descriptor)
