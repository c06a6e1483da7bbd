"""Time limits of one transfer: an alarm, so that no way of being slow escapes it."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Optional

from airpanda.pilot.carrier.outcome import TIMEOUT, Trouble

LEAST_S, MOST_S = 300.0, 3 * 3600.0
SLOWEST_BYTES_PER_S = 500_000.0
"""PanDA's idea of a transfer that is too slow (``get_timeout`` of pilot3's copy tools), and its two bounds."""


def limit_s(size: Optional[int]) -> float:
    """How long a file of this size may take; None is an unknown size."""
    return MOST_S if size is None else min(MOST_S, LEAST_S + size / SLOWEST_BYTES_PER_S)


def allow(size: Optional[int]) -> None:
    """From now on the transfer may take as long as its size allows; Trouble is raised in its place after that."""
    signal.signal(signal.SIGALRM, _over)
    allow_s(limit_s(size))


def allow_s(seconds: float) -> None:
    """The same with a time; 0 is without limit."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _over(number: int, frame: Optional[FrameType]) -> None:
    raise Trouble(TIMEOUT, "it took longer than its size allows")
