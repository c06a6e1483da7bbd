"""What /proc tells about processes of any account: ids, parents, CPU, memory, bytes moved. Linux only.

Source: proc(5); Linux, Documentation/ABI of ``smaps_rollup``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Optional

from airpanda.core.identity import Account
from airpanda.core.records import dataclass
from airpanda.glexec.ports import ProcessSeen, Usage

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_MAX_COMMAND = 4096


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


def command_of(pid: int) -> bytes:
    """The command line of a process, with a NUL after each word; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def began(pid: int) -> str:
    """When a process began, in ticks since the machine did: with its number it names it for good; empty when gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def tree(root: int) -> list[int]:
    """A process and all its descendants that can be seen."""
    return _family(root, {pid: int(fields[1]) for pid, fields in _all()})


def usage_of(root: int) -> Usage:
    """What the descendants of a process use, with what those used that were waited for.

    The process itself is ours: a launcher or supervisor that only waits. Its own memory and time are not the payload's.
    """
    seen = dict(_all())
    family = [pid for pid in _family(root, {pid: int(fields[1]) for pid, fields in seen.items()}) if pid in seen]
    members = [pid for pid in family if pid != root]
    # utime stime cutime cstime; of the root the latter two; rss
    cpu_ticks = sum(sum(map(int, seen[pid][13 if pid == root else 11 : 15])) for pid in family)
    resident = [int(seen[pid][21]) * _PAGE_KIB for pid in members]
    living = sum(seen[pid][0] not in "ZX" for pid in members)
    at, pss_kib = time.monotonic(), proportional_kib(members)
    return Usage(
        cpu_ticks / _TICKS,
        sum(resident),
        living,
        *moved_by(family),
        largest_kib=max(resident, default=0),
        pss_kib=pss_kib,
        pss_at=None if pss_kib is None else at,
    )


def descendants(root: int) -> list[ProcessSeen]:
    """The processes below one of ours, as they are now."""
    seen = dict(_all())
    family = _family(root, {pid: int(fields[1]) for pid, fields in seen.items()})
    return [_seen(pid, seen[pid]) for pid in family if pid != root and pid in seen]


def _seen(pid: int, fields: list[str]) -> ProcessSeen:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read(_MAX_COMMAND).rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        command = ""
    cpu_s = sum(map(int, fields[11:13])) / _TICKS
    return ProcessSeen(pid, int(fields[1]), fields[0], cpu_s, int(fields[21]) * _PAGE_KIB, command)


def moved_by(pids: Iterable[int]) -> tuple[int, int]:
    """Bytes that these processes have read and written, with the children they have waited for.

    Whom this account may not look into counts nothing.
    """
    read = written = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/io", encoding="ascii") as file:
                lines = file.read().splitlines()
            read, written = read + int(lines[0].split()[1]), written + int(lines[1].split()[1])
        except (OSError, IndexError):
            continue
    return read, written


def proportional_kib(pids: Iterable[int]) -> Optional[int]:
    """Memory of these processes, with pages that several share divided among them (the kernel's Pss).

    None where this account may not look into one of them: a sum without it would be too small.
    """
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                total += next((int(line.split()[1]) for line in file if line.startswith("Pss:")), 0)
        except ProcessLookupError:  # it has ended
            continue
        except OSError:
            if os.path.exists(f"/proc/{pid}"):
                return None
    return total


def _family(root: int, parents: Mapping[int, int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def _all() -> Iterator[tuple[int, list[str]]]:
    """Each process with the fields of its stat file from the state on; the name before it may hold anything."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    yield int(name), file.read().rpartition(")")[2].split()
            except OSError:
                continue
