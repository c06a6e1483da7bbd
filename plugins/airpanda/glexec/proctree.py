"""What /proc tells about processes of any account: ids, parents, CPU and memory. Linux only.

Source: proc(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Optional

from airpanda.core.identity import Account
from airpanda.core.records import dataclass
from airpanda.glexec.ports import Usage

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


@dataclass(frozen=True)
class Ids:
    """Real, effective, saved and file-system uid; the same of the gid; supplementary groups; the parent."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    parent: int

    def account(self, name: str) -> Optional[Account]:
        """The account, where all four uids are one and all four gids are one; else None."""
        if len({*self.uids}) != 1 or len({*self.gids}) != 1:
            return None
        gid = self.gids[0]
        return Account(name, self.uids[0], (gid, *(g for g in self.groups if g != gid)))


def ids_of(pid: int) -> Optional[Ids]:
    """The ids of a process, or None when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return None
    numbers = {key: tuple(map(int, lines[key].split())) for key in ("Uid", "Gid", "Groups", "PPid")}
    return Ids(numbers["Uid"], numbers["Gid"], numbers["Groups"], numbers["PPid"][0])


def tree(root: int) -> list[int]:
    """A process and all its descendants that can be seen."""
    children: dict[int, list[int]] = {}
    for pid, fields in _all():
        children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def usage_of(root: int) -> Usage:
    """CPU time of a tree, with that of its members that were waited for, and its resident memory."""
    wanted = set(tree(root))
    cpu_ticks = rss_pages = 0
    for pid, fields in _all():
        if pid in wanted:
            cpu_ticks += sum(map(int, fields[11:15]))  # utime stime cutime cstime
            rss_pages += int(fields[21])
    return Usage(cpu_ticks / _TICKS, rss_pages * _PAGE_KIB)


def _all() -> Iterator[tuple[int, list[str]]]:
    """Each process with the fields of its stat file from the state on; the name before it may hold anything."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    yield int(name), file.read().rpartition(")")[2].split()
            except OSError:
                continue
