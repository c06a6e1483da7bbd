"""Whether a node may go on taking jobs, and whose: rules over how its jobs have ended. No I/O, no clock.

One person's trouble (a MyProxy server that does not answer, a DN without a mapping) is no sign of a bad node: it would
bench one pilot after another for one person's jobs. Such an owner is left alone for a while. A node is bad when its
own check fails, when the fault can only be its own, when nobody's jobs run on it, or when everybody's fail there soon,
as a node without its software makes them do: each by its owner's fault, as far as the payload can tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from airpanda.pilot import errors
from airpanda.pilot.errors import JobFault

FIRST_PAUSE_S, MAX_PAUSE_S = 60.0, 1800.0
MAX_AVOIDED = 100
"""As many names as an offer can carry."""
STREAK = 3
"""So many owners in a row, and not one payload started, or not one ended well: that is the node."""
SOON_S = 600.0
"""A node that no payload can use makes it fail within this time; one that fails later has found what it needs."""


@dataclass(frozen=True)
class Verdict:
    """How one job ended, as far as it matters to the next one.

    ``fault``: why its payload has not run, where that was not its owner's doing. ``ran``: its payload has started.
    ``failed``: what the payload itself has ended with, where not well, after ``wall_s``.
    """

    owner_dn: str = ""
    ran: bool = False
    fault: Optional[JobFault] = None
    drain: bool = False
    failed: Optional[JobFault] = None
    wall_s: float = 0.0


@dataclass
class Trust:
    """What one pilot has seen of its node and of the owners it served."""

    _until: dict[str, float] = field(default_factory=dict)
    _pause_s: dict[str, float] = field(default_factory=dict)
    _streak: dict[str, JobFault] = field(default_factory=dict)
    _failing: dict[str, JobFault] = field(default_factory=dict)

    def note(self, verdict: Verdict, now: float) -> str:
        """Take one verdict into account; why the node must take no more jobs, or nothing."""
        if verdict.ran:
            self._streak.clear()
            self._pause_s.pop(verdict.owner_dn, None)
        fault = verdict.fault
        if fault is None:
            return self._judge_end(verdict)
        if fault.kind in errors.THE_NODES_OWN:
            return str(fault)
        if fault.kind in errors.NOBODYS:
            return ""
        self._avoid(verdict.owner_dn, now)
        self._streak[verdict.owner_dn] = fault
        if len(self._streak) < STREAK:
            return ""
        return f"no payload of {len(self._streak)} owners in a row could be started here; the last: {fault}"

    def _judge_end(self, verdict: Verdict) -> str:
        """After a job that could run: a node where those of several owners have ended badly, and all soon, is bad."""
        failed = verdict.failed
        if failed is None or verdict.wall_s > SOON_S:
            if verdict.ran:
                self._failing.clear()
            return ""
        self._failing[verdict.owner_dn] = failed
        if len(self._failing) < STREAK:
            return ""
        return f"the payloads of {len(self._failing)} owners in a row have failed here at once; the last: {failed}"

    def avoided(self, now: float) -> list[str]:
        """The owners whose jobs are not asked for now."""
        self._until = {owner: until for owner, until in self._until.items() if until > now}
        return sorted(self._until)[:MAX_AVOIDED]

    def _avoid(self, owner: str, now: float) -> None:
        pause_s = self._pause_s.get(owner, FIRST_PAUSE_S)
        self._pause_s[owner] = min(2 * pause_s, MAX_PAUSE_S)
        self._until[owner] = now + pause_s
