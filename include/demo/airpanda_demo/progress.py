"""What the demonstration says while it works, and where its time goes. Standard library only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Lines for a person, each with the seconds since the start, and the time of each phase."""

    def __init__(self, *, started: float | None = None, phases: dict[str, float] | None = None) -> None:
        """``started`` is a reading of ``time.monotonic``, which is the same clock in every process of a machine."""
        self.started = time.monotonic() if started is None else started
        self.phases = dict(phases or {})

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """One line, at once, whatever stdout is. A reader who has gone away stops nothing."""
        try:
            print(f"[{self.elapsed_s:6.1f} s] {text}", flush=True)
        except BrokenPipeError:
            sys.stdout = sys.stderr

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - start

    def summary(self) -> str:
        """Where the time went, one line."""
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.phases.items() if seconds >= 0.05)
        return f"{self.elapsed_s:.1f} s: {parts}"
