"""Watching one running payload: measurements at their own pace, each held against the job's limits."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Optional

from airpanda.core.errors import AirpandaError
from airpanda.pilot.errors import JobFault
from airpanda.pilot.limits import IDLE_CPU_S, MIN_FREE_MIB, ONE_PROCESS, PROPORTIONAL, Limits, Scan
from airpanda.pilot.samples import Samples

if TYPE_CHECKING:
    from airpanda.glexec.switchers import RunningPayload, Usage

log = logging.getLogger(__name__)

MEASURE_S = 2.0
"""Looking at a payload's processes means reading all of /proc: not at every step."""
COST = 100
"""A look that took long is followed by a pause so many times as long: a hundredth of a core, whatever the node runs."""
DOUBT_S = 180.0
"""So long a better look at memory is waited for, and so long it holds: the launcher takes one a minute, or one in two
minutes where that costs much."""
FIRST_SCAN_S = 10.0
"""What fills its sandbox often does so at once."""


@dataclass
class Watch:
    """One payload's measurements.

    Args:
        printed: bytes the payload has printed so far.
        scan: looks into the sandbox as its owner; slow, may fail.
        free_mib: free space where sandboxes are.
        scan_every_s: how often the sandbox is looked into; sooner when the node's disk fills up fast.
    """

    payload: RunningPayload
    limits: Limits
    printed: Callable[[], int]
    scan: Callable[[], Scan]
    free_mib: Callable[[], int]
    scan_every_s: float
    clock: Callable[[], float] = time.monotonic
    cpu_clock: Callable[[], float] = time.thread_time
    samples: Samples = field(default_factory=Samples)
    peak_rss_mib: float = 0.0
    cpu_s: float = 0.0
    began: float = 0.0
    _next_measure: float = 0.0
    _next_scan: float = 0.0
    _free_then: int = 0
    _scan: Scan = field(default_factory=lambda: Scan(0, 0, 0.0))
    _worked: float = 0.0
    _cpu_then: float = 0.0
    _signs: tuple[int, float] = (0, 0.0)
    _doubt: Optional[float] = None

    def __post_init__(self) -> None:
        self.began = self._worked = self.clock()
        self._next_scan = self.began + min(FIRST_SCAN_S, self.scan_every_s)
        self._free_then = self.free_mib()

    def faults(self) -> list[JobFault]:
        """Every limit that is exceeded now. Cheap when called often."""
        now = self.clock()
        found = [self.limits.time(now - self.began)]
        if found[0] is not None or now >= self._next_measure:
            usage = self._measure(now)
            found += [self._memory(now, usage), *self._disk(now), self._progress(now, usage.cpu_s)]
        return [fault for fault in found if fault is not None]

    def afterwards(self) -> list[JobFault]:
        """Of a payload that has ended badly: whether the disk was the reason. Costs nothing where it has room."""
        free = self.free_mib()
        if free >= MIN_FREE_MIB and not self._is_filling(free):
            return []
        self._look(free)
        return [fault for fault in self._disk_faults(free) if fault is not None]

    def _measure(self, now: float) -> Usage:
        """What the payload's tree uses now; remembers the most memory ever seen."""
        begin = self.cpu_clock()
        usage = self.payload.usage()
        self._next_measure = now + max(MEASURE_S, COST * (self.cpu_clock() - begin))
        self.peak_rss_mib = max(self.peak_rss_mib, usage.rss_kib / 1024)
        self.cpu_s = usage.cpu_s
        self.samples.note(now - self.began, usage, self._scan.disk_bytes)
        return usage

    def _memory(self, now: float, usage: Usage) -> Optional[JobFault]:
        """By the sum of resident memory, where that is within the limit or nobody can tell better.

        Over it, what is shared must not count twice: the next look that knows better decides, and is waited for, but
        not for ever. Nor does it hold for ever, where no other look follows.
        """
        if usage.rss_kib / 1024 <= self.limits.most_mib:
            self._doubt = None
            return None
        self._doubt = now if self._doubt is None else self._doubt
        alone = self.limits.memory(usage.largest_kib / 1024, ONE_PROCESS)
        if alone is not None:
            return alone
        since = max(self._doubt, now - DOUBT_S)
        if usage.pss_kib is not None and usage.pss_at is not None and usage.pss_at >= since:
            return self.limits.memory(usage.pss_kib / 1024, PROPORTIONAL)
        if usage.pss_at is not None and now - self._doubt < DOUBT_S:
            return None
        return self.limits.memory(usage.rss_kib / 1024)

    def _disk(self, now: float) -> list[Optional[JobFault]]:
        free = self.free_mib()
        if now < self._next_scan and not self._is_filling(free) and free >= MIN_FREE_MIB:
            return []
        self._look(free)
        return self._disk_faults(free)

    def _is_filling(self, free: int) -> bool:
        return self._free_then - free > self.limits.disk_mib / 4

    def _disk_faults(self, free: int) -> list[Optional[JobFault]]:
        own = self.limits.disk(self._scan)
        return [own] if own is not None else [self.limits.node(free)]  # who filled the node is not its victim

    def _look(self, free: int) -> None:
        """A sandbox that cannot be looked into is told in the log; the node's own free space is still watched."""
        self._free_then = free
        try:
            self._scan = self.scan()
        except (AirpandaError, OSError) as error:
            log.warning("the sandbox was not measured: %s", error)
        self._next_scan = self.clock() + self.scan_every_s  # from its end: a slow look must not be all that happens

    def _progress(self, now: float, cpu_s: float) -> Optional[JobFault]:
        signs = (self.printed(), self._scan.newest)
        if signs != self._signs or cpu_s - self._cpu_then >= IDLE_CPU_S:
            self._worked, self._signs, self._cpu_then = now, signs, cpu_s
        return self.limits.silence(now - self._worked)
