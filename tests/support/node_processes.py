"""Processes of one worker node, told apart from those of other nodes with the same accounts on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from support.launcher import Site, host_status


def processes_of(site: Site, uid: int) -> list[int]:
    """Pids, as the host sees them, of this node's living processes whose real uid is this."""
    return [pid for pid in site.processes(uid) if descends(pid, site.node.init_pid)]


def pilots_of(site: Site, uid: int) -> list[int]:
    """The pilots themselves: neither the keepers that started them nor a child of theirs that is about to exec."""
    found = {pid for pid in processes_of(site, uid) if b"airpanda.pilot" in command_of(pid)}
    return [pid for pid in sorted(found) if parent_of(pid) not in found]


def command_of(pid: int) -> bytes:
    """The arguments of a process; none of one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def kill_pilots(site: Site, uid: int) -> None:
    """SIGKILL to all of them."""
    for pid in pilots_of(site, uid):
        os.kill(pid, 9)


def top_of(pids: list[int], marker: str) -> int:
    """The one with this in its arguments that is above the others: by its parent, since numbers begin anew."""
    return next(pid for pid in pids if marker.encode() in command_of(pid) and parent_of(pid) not in pids)


def parent_of(pid: int) -> int:
    """0 of one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def descends(pid: int, init: int) -> bool:
    """The node's first process adopts its orphans, so everything on it leads there."""
    while pid > 1 and pid != init:
        status = host_status(pid)
        pid = int(status["PPid"]) if status else 0
    return pid == init
