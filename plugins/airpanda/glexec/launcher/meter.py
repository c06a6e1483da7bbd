"""What a running payload has read, written and shares: only root may look at that of another account's processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Optional

from airpanda.glexec.launcher.audit import Value

EVERY_S = 5.0
_SHARE, _LONGEST_S = 60, 60.0
"""The pauses grow with the payload's age, so that the record of a long one stays short (1500 lines a day); but who must
judge its memory does not wait long."""
_COST, _MOST_S = 100, 120.0
"""A look that costs much is followed by a pause so many times as long, which is a hundredth of a core; but who judges
memory by these looks (``airpanda.pilot.watch``) takes none that is older than three minutes."""


class Meter:
    """Looks at one payload from time to time, from outside.

    Args:
        init: the first process of the payload's PID namespace, which waits for all the others.
        cgroup: the directory of the payload's cgroup, which knows its processes, or None: then all are looked at.
    """

    def __init__(self, init: int, cgroup: Optional[Path]) -> None:
        self._init = init
        self._cgroup = cgroup
        self._began = time.monotonic()
        self._next = self._began + EVERY_S

    def left_s(self) -> float:
        """Until the next look."""
        return max(0.0, self._next - time.monotonic())

    def look(self) -> dict[str, Value]:
        """The event for the caller's record."""
        from airpanda.glexec.proctree import moved_by, proportional_kib  # for long payloads only

        begin, at = time.process_time(), time.monotonic()
        members = self._members()
        (read, written), pss_kib = moved_by(members), proportional_kib(pid for pid in members if pid != self._init)
        cost_s, now = time.process_time() - begin, time.monotonic()
        by_age, by_cost = min((now - self._began) / _SHARE, _LONGEST_S), min(_COST * cost_s, _MOST_S)
        self._next = now + max(EVERY_S, by_age, by_cost)
        shared: dict[str, Value] = {} if pss_kib is None else {"pss_kib": pss_kib}
        return {"event": "used", "at": round(at, 3), "read_bytes": read, "written_bytes": written, **shared}

    def _members(self) -> list[int]:
        from airpanda.glexec.proctree import tree

        if self._cgroup is None:
            return tree(self._init)
        try:
            inside = (self._cgroup / "cgroup.procs").read_text(encoding="ascii").split()
        except OSError:
            return tree(self._init)
        return [self._init, *map(int, inside)]
