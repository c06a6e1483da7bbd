"""What cgroups leave to this process of memory and cores: those of a container, and those that batch systems make.

A batch system's limit is on the job's own group or on one above it, wherever ``/proc/self/cgroup`` says; a container
sees its own group as the root. Both versions, and both mounted at once, are read; what cannot be read limits nothing.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/; cgroups(7).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Callable, Optional

Read = Callable[[str], str]
ROOT = "/sys/fs/cgroup"
_V2_ROOTS = (ROOT, f"{ROOT}/unified")


def memory_limit_bytes(read: Read) -> Optional[int]:
    """The least that any group allows; None where none says anything. ``read``: the text of a file, or nothing."""
    v2 = (f"{group}/memory.max" for group in _v2_groups(read))
    v1 = (f"{group}/memory.limit_in_bytes" for group in _v1_groups(read, "memory"))
    said = [read(path).strip() for path in itertools.chain(v2, v1)]
    return min((int(text) for text in said if text.isdecimal()), default=None)


def core_limit(read: Read) -> Optional[float]:
    """So many cores' worth of time each period; None where none says anything."""
    v2 = [read(f"{group}/cpu.max").split() for group in _v2_groups(read)]
    v1 = [
        (read(f"{group}/cpu.cfs_quota_us") + " " + read(f"{group}/cpu.cfs_period_us")).split()
        for group in _v1_groups(read, "cpu")
    ]
    pairs = [pair for pair in (*v2, *v1) if len(pair) == 2 and all(word.isdecimal() for word in pair)]
    return min((int(quota) / int(period) for quota, period in pairs if int(period) > 0), default=None)


def _v2_groups(read: Read) -> Iterator[str]:
    own = next((path for names, path in _own(read) if not names), "/")
    return (place for root in _V2_ROOTS for place in _upwards(root, own))


def _v1_groups(read: Read, controller: str) -> Iterator[str]:
    for names, path in _own(read):
        if controller in names:
            for root in dict.fromkeys((f"{ROOT}/{','.join(names)}", f"{ROOT}/{controller}")):
                yield from _upwards(root, path)


def _own(read: Read) -> list[tuple[list[str], str]]:
    """Controllers and path of this process's groups; version 2 names no controllers."""
    lines = (line.split(":", 2) for line in read("/proc/self/cgroup").splitlines())
    return [(names.split(",") if names else [], path) for _, names, path in (each for each in lines if len(each) == 3)]


def _upwards(root: str, path: str) -> Iterator[str]:
    """From a group to the root. A path that leads out of what is mounted here names no group of ours."""
    below = PurePosixPath(path.lstrip("/"))
    if ".." not in below.parts:
        yield from (f"{root}/{each}" for each in (below, *below.parents) if each.parts)
    yield root
