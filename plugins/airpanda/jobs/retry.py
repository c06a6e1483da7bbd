"""Retry rules: what a known error changes about the next attempt. Pure; the rows are read elsewhere.

A rule matches an error by source, code, the start of its text (with ``*`` and ``?``) and queue; what it leaves out
matches anything. Of rules that bound the attempts the narrowest counts, and the strictest of equally narrow ones; they
bind errors of the user only, so that nothing a site does ever uses up a user's attempts. Of rules that change the next
attempt the narrowest for the first, most telling error counts. A rule that is not active only says what it would do.

Source: panda-server, ``taskbuffer/retryModule.py``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from airpanda.jobs.rules import Ends
from airpanda.messages import Blame, JobError, JobStatus, RetryAction

WAITING_S = 900
_BOUNDS = frozenset({RetryAction.NO_RETRY, RetryAction.LIMIT})


@dataclass(frozen=True)
class RetryRule:
    """A row of ``panda_retry_rule``. ``factor``: how much more memory or time; ``max_attempt``: of a limit."""

    rule_id: int
    source: str
    code: int | None
    pattern: str
    queue: str
    action: RetryAction
    factor: float
    max_attempt: int
    is_active: bool
    expires_at: datetime | None

    @property
    def bound(self) -> int:
        """How many charged attempts it leaves."""
        return 0 if self.action is RetryAction.NO_RETRY else self.max_attempt

    @property
    def width(self) -> int:
        """How many of its conditions are left out."""
        return (self.code is None) + (not self.pattern) + (not self.queue)

    def matches(self, error: JobError, *, queue: str, now: datetime) -> bool:
        """Whether it speaks of this error at this queue now."""
        return (
            self.source == error.source
            and self.code in (None, error.code)
            and self.queue in ("", queue)
            and (self.expires_at is None or now < self.expires_at)
            and (not self.pattern or _compiled(self.pattern).match(error.diag.lower()) is not None)
        )


@dataclass(frozen=True)
class Verdict:
    """What the rules say of an attempt's errors, and why."""

    bound: int | None = None
    change: RetryRule | None = None
    why: tuple[str, ...] = ()

    @property
    def is_elsewhere(self) -> bool:
        """Whether the next attempt is for another node."""
        return self.change is not None and self.change.action is RetryAction.RETRY_ELSEWHERE


@dataclass(frozen=True)
class Needs:
    """What the next attempt asks for."""

    memory_mib: int
    walltime_s: int


def judge(rules: Iterable[RetryRule], errors: Sequence[JobError], *, queue: str, now: datetime) -> Verdict:
    """The verdict on an attempt that ended with these errors."""
    why: list[str] = []
    bounds: list[RetryRule] = []
    change: RetryRule | None = None
    known = sorted(rules, key=lambda rule: (rule.width, rule.bound, rule.rule_id))
    for error in errors:
        for rule in known:
            if not rule.matches(error, queue=queue, now=now):
                continue
            says = f"rule {rule.rule_id} ({rule.action.value.replace('_', ' ')}) for {error.source} error {error.code}"
            if not rule.is_active:
                why.append(f"{says} would apply; it only logs")
            elif rule.action in _BOUNDS and error.blame is not Blame.USER:
                why.append(f"{says} is not applied: errors of the {error.blame} never use up the user's attempts")
            elif rule.action in _BOUNDS:
                bounds.append(rule)
                why.append(says)
            elif change is None:
                change = rule
                why.append(says)
    narrowest = min(bounds, key=lambda rule: (rule.width, rule.bound), default=None)
    return Verdict(None if narrowest is None else narrowest.bound, change, tuple(why))


def bounded(ends: Ends, verdict: Verdict, *, charged_before: int) -> Ends:
    """The decision within what the rules leave of the user's attempts."""
    was_charged = ends.charged > charged_before
    if not ends.is_next_attempt or not was_charged or verdict.bound is None or ends.charged < verdict.bound:
        return ends
    return replace(ends, job=JobStatus.FAILED)


def changed(needs: Needs, verdict: Verdict, *, most: Needs | None) -> Needs:
    """What the next attempt asks for: more of what it lacked, as far as the queue's pilots have it."""
    rule = verdict.change
    if rule is None or most is None:
        return needs
    if rule.action is RetryAction.MORE_MEMORY:
        return replace(needs, memory_mib=_more(needs.memory_mib, rule.factor, most.memory_mib))
    if rule.action is RetryAction.MORE_TIME:
        return replace(needs, walltime_s=_more(needs.walltime_s, rule.factor, most.walltime_s))
    return needs


def covered(verdict: Verdict, before: Needs, after: Needs, *, left_s: int) -> tuple[Verdict, Needs]:
    """No more time than the job's credential lasts after some waiting: no pilot would be given the job. Then as before,
    and why.
    """
    if after.walltime_s <= max(before.walltime_s, raised_s_within(left_s)):
        return verdict, after
    says = (
        f"no more time is asked for: the owner's credential lasts {max(0, left_s)} s, and not {after.walltime_s} with"
        f" {WAITING_S} for waiting"
    )
    return replace(verdict, why=(*verdict.why, says)), replace(after, walltime_s=before.walltime_s)


def raised_s_within(left_s: int) -> int:
    """How far a job's time may be raised where its credential lasts so long: the job has to wait for a pilot, too."""
    return left_s - WAITING_S


def explained(
    ends: Ends, verdict: Verdict, before: Needs, after: Needs, *, charged_before: int, max_attempt: int
) -> str:
    """The decision in words."""
    said = [*verdict.why]
    if ends.charged > charged_before:
        said.append(f"used up attempt {ends.charged} of {max_attempt}")
    elif ends.attempt is JobStatus.FAILED:
        said.append("cost the user none of the attempts")
    if ends.is_next_attempt:
        if after.memory_mib != before.memory_mib:
            said.append(f"the next attempt asks for {after.memory_mib} MiB instead of {before.memory_mib}")
        if after.walltime_s != before.walltime_s:
            said.append(f"the next attempt asks for {after.walltime_s} s instead of {before.walltime_s}")
    elif ends.job is JobStatus.FAILED:
        said.append("no further attempt by itself")
    return "; ".join(said)


def rule_of(row: Mapping[str, Any]) -> RetryRule:
    """A row of ``panda_retry_rule``."""
    fields = {name: row[name] for name in RetryRule.__dataclass_fields__ if name != "action"}
    return RetryRule(**fields, action=RetryAction(row["action"]))


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of ``*`` and ``?`` for texts in lower case.

    Patterns are matched on the event loop, against texts that payloads write. What ``fnmatch`` makes never goes back
    over what a ``*`` took, so that it takes length times length at most; brackets mean nothing here.
    """
    return re.compile(fnmatch.translate(pattern.lower().replace("[", "[[]") + "*"))


def _more(value: int, factor: float, most: int) -> int:
    return max(value, min(most, int(value * factor)))
