"""How many requests a caller may send: one token bucket each, in this process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

BURST_S = 10.0
MAX_CALLERS = 100_000


class Rates:
    """Buckets that fill with ``rate`` requests a second and hold ten seconds' worth; 0 is no limit.

    The longest unseen callers are forgotten first: a forgotten bucket is a full one.
    """

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._full = max(1.0, rate * BURST_S)
        self._clock = clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, caller: Hashable) -> float:
        """Seconds until this caller may send its request; 0.0 is now, and counts it."""
        if not self._rate:
            return 0.0
        now = self._clock()
        left, then = self._buckets.pop(caller, (self._full, now))
        left = min(self._full, left + (now - then) * self._rate)
        wait_s = 0.0 if left >= 1.0 else (1.0 - left) / self._rate
        self._buckets[caller] = (left if wait_s else left - 1.0, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return wait_s
