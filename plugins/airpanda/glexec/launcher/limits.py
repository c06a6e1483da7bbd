"""Limits that a caller has, by its own will or a batch system's: for its payload, and not for the launcher's work.

A launcher that sudo starts inherits them: one that may write no file leaves no record. Its payload gets them back. The
socket's launcher has those of its service, and looks up the caller's.

Source: proc(5), /proc/PID/limits.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from pathlib import Path

Limit = tuple[int, int, int]
"""Which resource, soft limit, hard limit."""
_UNLIMITED = resource.RLIM_INFINITY
_NEEDED = {
    resource.RLIMIT_FSIZE: _UNLIMITED,
    resource.RLIMIT_CPU: _UNLIMITED,
    resource.RLIMIT_AS: _UNLIMITED,
    resource.RLIMIT_DATA: _UNLIMITED,
    resource.RLIMIT_NOFILE: 1024,
}
_NAMES = {
    "Max cpu time": resource.RLIMIT_CPU,
    "Max file size": resource.RLIMIT_FSIZE,
    "Max data size": resource.RLIMIT_DATA,
    "Max stack size": resource.RLIMIT_STACK,
    "Max processes": resource.RLIMIT_NPROC,
    "Max open files": resource.RLIMIT_NOFILE,
    "Max locked memory": resource.RLIMIT_MEMLOCK,
    "Max address space": resource.RLIMIT_AS,
}
_NAME_WIDTH = 26


def of_process(pid: int) -> tuple[Limit, ...]:
    """What another process may use; nothing is known of one in a PID namespace that cannot be seen from here (0).

    Raises:
        OSError: it has ended.
    """
    if pid == 0:
        return ()
    text = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
    values = {line[:_NAME_WIDTH].rstrip(): line[_NAME_WIDTH:].split()[:2] for line in text.splitlines()}
    return tuple((kind, *map(_number, values[name])) for name, kind in _NAMES.items())  # type: ignore[misc]


def _number(word: str) -> int:
    return _UNLIMITED if word == "unlimited" else int(word)


def lift() -> tuple[Limit, ...]:
    """Raise this process's limits to what it needs, as far as the kernel lets it; those that were lower, as they were.

    Where it does not, the record that comes before every payload fails, and no payload runs.
    """
    lower = []
    for kind, needed in _NEEDED.items():
        soft, hard = resource.getrlimit(kind)
        if _is_below(soft, needed):
            _raise(kind, hard, needed)
            lower.append((kind, soft, hard))
    return tuple(lower)


def _raise(kind: int, hard: int, needed: int) -> None:
    if not _is_below(hard, needed):
        resource.setrlimit(kind, (needed, hard))
        return
    try:
        resource.setrlimit(kind, (needed, needed))
    except (OSError, ValueError):  # root without CAP_SYS_RESOURCE, as in some containers
        resource.setrlimit(kind, (hard, hard))


def restore(limits: Iterable[Limit]) -> None:
    """Put limits back as they were, or set them, where this process has not less already.

    To be called last before the payload; it needs no privilege.
    """
    for kind, soft, hard in limits:
        _, most = resource.getrlimit(kind)
        resource.setrlimit(kind, (_least(soft, most), _least(hard, most)))


def _least(value: int, most: int) -> int:
    return most if _is_below(most, value) else value


def _is_below(value: int, needed: int) -> bool:
    return value != _UNLIMITED and (needed == _UNLIMITED or value < needed)
