"""Silence of pilots: suspected before it is believed. Pure; nothing is written when a pilot falls silent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Silence:
    """After ``suspected`` without a report people are told, after ``lease`` the job is given to another pilot.

    Each report sets the end of the lease ``lease`` from then, so that what is left of it tells how long ago that was.
    """

    suspected: timedelta
    lease: timedelta

    @property
    def margin(self) -> timedelta:
        """At most so much is left of the lease of who is suspected."""
        return self.lease - self.suspected

    def of(self, left_s: float | None) -> float | None:
        """For how many seconds a pilot has said nothing, if it is suspected; None: it is not, or there is none.

        Args:
            left_s: what is left of its lease; below 0 where that has ended.
        """
        if left_s is None or left_s > self.margin.total_seconds():
            return None
        return self.lease.total_seconds() - left_s
