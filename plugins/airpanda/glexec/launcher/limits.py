"""Limits that a caller has set for itself and that must not keep the launcher from its work.

A launcher that sudo starts inherits them: one that may write no file leaves no record. Its payload gets them back.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable

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
    """Put limits back as they were; to be called last before the payload, which needs no privilege for it."""
    for kind, soft, hard in limits:
        resource.setrlimit(kind, (soft, hard))


def _is_below(value: int, needed: int) -> bool:
    return value != _UNLIMITED and (needed == _UNLIMITED or value < needed)
