"""Why the pilot should end: a signal of the batch system, remembered for whoever looks."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Optional

from airpanda.pilot import errors
from airpanda.pilot.errors import JobFault, Kind

_KINDS: dict[int, Kind] = {
    signal.SIGTERM: errors.SIG_TERM,
    signal.SIGINT: errors.SIG_INT,
    signal.SIGQUIT: errors.SIG_QUIT,
    signal.SIGXCPU: errors.SIG_XCPU,
    signal.SIGUSR1: errors.SIG_USR,
    signal.SIGUSR2: errors.SIG_USR,
    signal.SIGHUP: errors.SIG_TERM,
}


class Stop:
    """Set once by the first signal; ``event`` wakes everything that waits.

    ``bell`` wakes the main thread alone: a signal rings it, and so does whoever has news for it.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.bell = threading.Event()
        self.signal: Optional[int] = None
        self._at = 0.0

    def install(self) -> None:
        """Take the signals of batch systems. For the main thread."""
        for number in _KINDS:
            signal.signal(number, self._take)

    @property
    def exit_code(self) -> int:
        """A shell's code for the signal."""
        return 128 + (self.signal or 0)

    def fault(self) -> Optional[JobFault]:
        """The fault that a stopped pilot reports for its job, or None while nobody asked."""
        return None if self.signal is None else JobFault(_KINDS[self.signal])

    def asked_s(self) -> float:
        """Seconds since the signal; 0 while there was none. A batch system's grace is counted from there."""
        return 0.0 if self.signal is None else time.monotonic() - self._at

    def _take(self, number: int, frame: Optional[FrameType]) -> None:
        if self.signal is None:
            self._at = time.monotonic()
            self.signal = number
        self.event.set()
        self.bell.set()
