"""A payload's measurements over time: denser at its beginning, bounded in number however long it runs. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airpanda.pilot import wire

if TYPE_CHECKING:
    from airpanda.glexec.switchers import Usage

EVERY_S = 2.0
_SHARE = 60
"""The distance grows with the payload's age: some 260 samples in an hour, 460 in a day, 660 in thirty."""
BATCH = 10
"""A heartbeat with samples costs the dispatcher more than a bare one: they travel together."""
_MIB = 1024 * 1024


class Samples:
    """The samples of one attempt, and which of them the dispatcher has."""

    def __init__(self) -> None:
        self.all: list[dict[str, float]] = []
        self._next_s = 0.0
        self._told_s = -1.0

    def note(self, at_s: float, usage: Usage, disk_bytes: int) -> None:
        """Keep this measurement if it is time for one. ``at_s``: seconds since the payload's start."""
        if at_s < self._next_s:
            return
        self._next_s = at_s + max(EVERY_S, at_s / _SHARE)
        sample: dict[str, float] = {
            "at_s": round(at_s, 3),
            "cpu_s": round(usage.cpu_s, 3),
            "rss_mib": round(usage.rss_kib / 1024, 3),
            "read_mib": round(usage.read_bytes / _MIB, 3),
            "written_mib": round(usage.written_bytes / _MIB, 3),
            "disk_mib": round(disk_bytes / _MIB, 3),
            "processes": usage.processes,
        }
        if usage.pss_kib is not None:
            sample["pss_mib"] = round(usage.pss_kib / 1024, 3)
        self.all.append(sample)

    def untold(self, *, at_least: int = 1) -> list[dict[str, float]]:
        """What a report may carry of those that have not arrived yet; none of fewer than ``at_least``."""
        found = [sample for sample in self.all if sample["at_s"] > self._told_s]
        return found[: wire.MAX_SAMPLES] if len(found) >= at_least else []

    def arrived(self, samples: list[dict[str, float]]) -> None:
        """The dispatcher has these."""
        if samples:
            self._told_s = max(self._told_s, samples[-1]["at_s"])
