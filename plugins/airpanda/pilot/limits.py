"""What a payload may use: every limit of a job in one place, as rules over measured values. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from airpanda.pilot import errors
from airpanda.pilot.errors import JobFault

RSS_GRACE = 2.0
"""PanDA kills at twice the memory asked for (``pilot_rss_grace``)."""
RESIDENT = "resident, what processes share counts for each"
PROPORTIONAL = "what processes share counts once"
ONE_PROCESS = "one process alone"
DISK_GRACE = 1.2
"""PanDA kills at 1.2 times the disk asked for (``maxwdir``)."""
MIN_FREE_MIB = 256
"""Below this the node's disk is full for everybody on it."""
IDLE_CPU_S = 1.0
"""A payload that used less CPU than this since it was last seen to work has used none."""
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Scan:
    """What lies in a sandbox: bytes on disk, files, and when a file of the payload was changed last (Unix time)."""

    disk_bytes: int
    files: int
    newest: float


@dataclass(frozen=True)
class Limits:
    """The limits of one job. Each rule answers with a fault, or None. ``looping_s``: silence that means no progress."""

    walltime_s: float
    memory_mib: int
    disk_mib: int
    looping_s: float

    def time(self, wall_s: float) -> Optional[JobFault]:
        return JobFault(errors.WALLTIME, f"{self.walltime_s} s") if wall_s > self.walltime_s else None

    def memory(self, used_mib: float, how: str = RESIDENT) -> Optional[JobFault]:
        """``how``: what was counted, in words."""
        if used_mib > self.most_mib:
            return JobFault(errors.MEMORY, f"{used_mib:.0f} MiB ({how}), {self.memory_mib} asked for")
        return None

    @property
    def most_mib(self) -> float:
        return RSS_GRACE * self.memory_mib

    def disk(self, scan: Scan) -> Optional[JobFault]:
        if scan.disk_bytes > DISK_GRACE * self.disk_mib * _MIB:
            used = f"{scan.disk_bytes / _MIB:.0f} MiB in {scan.files} files, {self.disk_mib} asked for"
            return JobFault(errors.SANDBOX_TOO_LARGE, used)
        return None

    def node(self, free_mib: int) -> Optional[JobFault]:
        return JobFault(errors.NO_SPACE, f"{free_mib} MiB are left on the node") if free_mib < MIN_FREE_MIB else None

    def silence(self, quiet_s: float) -> Optional[JobFault]:
        if quiet_s > self.looping_s:
            return JobFault(errors.LOOPING, f"no CPU time, no output and no changed file for {quiet_s:.0f} s")
        return None
