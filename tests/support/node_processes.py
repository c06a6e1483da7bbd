"""Processes of one worker node, told apart from those of other nodes with the same accounts on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from support.launcher import Site, host_status


def processes_of(site: Site, uid: int) -> list[int]:
    """Pids, as the host sees them, of this node's living processes whose real uid is this."""
    return [pid for pid in site.processes(uid) if _descends(pid, site.node.init_pid)]


def kill_pilots(site: Site, uid: int) -> None:
    """SIGKILL to the pilots themselves, not to the keepers that started them."""
    for pid in processes_of(site, uid):
        if b"airpanda.pilot" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, 9)


def _descends(pid: int, init: int) -> bool:
    """The node's first process adopts its orphans, so everything on it leads there."""
    while pid > 1 and pid != init:
        status = host_status(pid)
        pid = int(status["PPid"]) if status else 0
    return pid == init
