"""What processes have used of the cores, as the kernel counts it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from airpanda_demo.processes import descendants

_TICKS = os.sysconf("SC_CLK_TCK")


def of_tree(pid: int) -> float:
    """CPU seconds of a process, of what lives below it, and of what has ended there and was waited for."""
    return sum(map(_of, [pid, *(each.pid for each in descendants(pid))]))


def _of(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS
    return 0.0
