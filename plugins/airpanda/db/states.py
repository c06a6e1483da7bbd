"""Which job status may follow which: the one table, enforced again by a trigger of the database.

Names and meanings are PanDA's:

===========  =================================================================================================
pending      accepted, not yet split or placed
defined      complete, waiting to be assigned
assigned     bound to a queue, inputs not yet there
activated    may be taken by a pilot
sent         leased to a pilot that has not reported yet
starting     the pilot prepares: credential, sandbox, switch of identity
running      the payload runs
holding      the payload ended, its output is being registered
merging      output waits to be merged
transferring output is on its way to its destination
finished     done; final for ever
failed       no attempt is left, or nobody may make another; final until a person asks for a new attempt
cancelled    stopped on request; final as ``failed`` is
closed       given up before it ran; final as ``failed`` is
===========  =================================================================================================

Inside one attempt only ``SAME_ATTEMPT`` counts. A new attempt always starts at ``activated`` with the next
attempt number, so that whatever the old one still reports can be told apart.
"""

from __future__ import annotations

from types import MappingProxyType

from airpanda.messages import JobStatus as S

SAME_ATTEMPT = MappingProxyType(
    {
        S.PENDING: frozenset({S.DEFINED, S.CANCELLED, S.CLOSED}),
        S.DEFINED: frozenset({S.ASSIGNED, S.ACTIVATED, S.CANCELLED, S.CLOSED}),
        S.ASSIGNED: frozenset({S.ACTIVATED, S.CANCELLED, S.CLOSED}),
        S.ACTIVATED: frozenset({S.SENT, S.CANCELLED, S.CLOSED}),
        S.SENT: frozenset({S.STARTING, S.RUNNING, S.FAILED, S.CANCELLED}),
        S.STARTING: frozenset({S.RUNNING, S.FAILED, S.CANCELLED}),
        S.RUNNING: frozenset({S.HOLDING, S.FINISHED, S.FAILED, S.CANCELLED}),
        S.HOLDING: frozenset({S.MERGING, S.TRANSFERRING, S.FINISHED, S.FAILED, S.CANCELLED}),
        S.MERGING: frozenset({S.TRANSFERRING, S.FINISHED, S.FAILED, S.CANCELLED}),
        S.TRANSFERRING: frozenset({S.FINISHED, S.FAILED, S.CANCELLED}),
        S.FINISHED: frozenset(),
        S.FAILED: frozenset(),
        S.CANCELLED: frozenset(),
        S.CLOSED: frozenset(),
    }
)

LEASED = frozenset({S.SENT, S.STARTING, S.RUNNING, S.HOLDING, S.MERGING, S.TRANSFERRING})
"""A pilot holds the job; without its reports the watchdog takes the job back."""

WAITING = frozenset({S.PENDING, S.DEFINED, S.ASSIGNED, S.ACTIVATED})
"""Nobody holds the job."""

RETRIABLE = frozenset({S.FAILED, S.CANCELLED, S.CLOSED})
"""Final, but a person may ask for a new attempt."""

NEW_ATTEMPT = LEASED | RETRIABLE
"""From here ``activated`` may follow, as the start of the next attempt."""

INITIAL = frozenset({S.PENDING, S.DEFINED, S.ACTIVATED})
"""How a job may enter the store."""


def may_follow(old: S, new: S, *, next_attempt: bool = False) -> bool:
    """Whether ``new`` may follow ``old``, in the same attempt or as the start of the next one."""
    if next_attempt:
        return new is S.ACTIVATED and old in NEW_ATTEMPT
    return new in SAME_ATTEMPT[old]
