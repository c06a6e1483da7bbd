"""What the factory looks at, what it remembers between cycles, and what it decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal


@dataclass(frozen=True)
class Demand:
    """Jobs that pilots of this queue could take now, and those that they have."""

    waiting: int = 0
    waiting_cores: int = 0
    running: int = 0


@dataclass(frozen=True)
class BatchOutcome:
    """One submission. ``registered`` pilots have said that they can work, ``eaten`` ones have ended and never did.

    The rest is pending, or was cancelled by us, which says nothing about the site.
    """

    batch_id: int
    pilots: int
    registered: int = 0
    eaten: int = 0
    cancelled: int = 0

    @property
    def pending(self) -> int:
        return self.pilots - self.registered - self.eaten - self.cancelled

    @property
    def is_good(self) -> bool:
        return self.registered > 0

    @property
    def is_eaten(self) -> bool:
        return self.registered == 0 and self.pending <= 0 and self.eaten > 0


@dataclass(frozen=True)
class Waiting:
    """A pilot that has not registered: its id, and for how long it has been waiting or running unheard."""

    pilot_id: int
    age_s: float
    unheard_s: float = 0.0


@dataclass(frozen=True)
class CEView:
    """One computing element of the queue. ``batches``: the latest submissions, the newest first.

    ``silent``: pilots that the element says run, and that have not been heard for that many seconds. ``probes``: those
    of tests of the queue; nobody counts on them, and none is there for ever.
    """

    name: str
    queued: Sequence[Waiting] = ()
    idle: int = 0
    busy: int = 0
    silent: Sequence[Waiting] = ()
    batches: Sequence[BatchOutcome] = ()
    median_queue_s: float | None = None
    probes: Sequence[Waiting] = ()

    @property
    def live(self) -> int:
        return len(self.queued) + self.idle + self.busy + len(self.silent)


@dataclass(frozen=True)
class NodeView:
    """What lately came of pilots on one node. ``short``: ended at once or refused to work, without any job."""

    node: str
    pilots: int
    short: int = 0
    jobs_done: int = 0
    jobs_failed: int = 0


@dataclass(frozen=True)
class View:
    """Everything about one queue at one moment."""

    demand: Demand
    ces: Sequence[CEView]
    nodes: Sequence[NodeView] = ()
    bad_nodes: Mapping[str, datetime] = field(default_factory=dict)


CallKind = Literal["question", "submission"]
"""A site may answer questions and take no pilots: an answer says nothing of submissions."""


@dataclass(frozen=True)
class Breaker:
    """A circuit breaker. Closed at ``opened`` 0; else open until ``open_until``, and half open after.

    ``since``: batches up to this one are judged. ``errors``: failures in a row of calls, not of pilots, and ``failing``
    the kind of the last one; ``by_calls``: it was they that opened it.
    """

    opened: int = 0
    open_until: datetime | None = None
    since: int = 0
    errors: int = 0
    failing: CallKind = "question"
    by_calls: bool = False
    reason: str = ""

    def is_open(self, now: datetime) -> bool:
        """Not half open yet."""
        return self.opened > 0 and self.open_until is not None and now < self.open_until


@dataclass(frozen=True)
class CEMemory:
    """What is remembered of one element. ``step``: how many pilots the next submission may have (slow start).

    ``refused``: the queue's fingerprint when the element would have none of its pilots, whatever it is asked, and until
    when it is not asked again: what it refuses may be mended at the site, too.
    """

    breaker: Breaker = Breaker()
    step: int = 0
    judged: int = 0
    busy_until: datetime | None = None
    busy_reason: str = ""
    refused: str = ""
    refused_reason: str = ""
    refused_until: datetime | None = None
    credential_end: datetime | None = None
    rpc_tokens: float | None = None
    rpc_at: datetime | None = None


@dataclass(frozen=True)
class Memory:
    """What the factory of one queue remembers.

    ``credential`` is the breaker of the pilots' credential; ``strays`` are tags of this installation that an element
    has and the store has not, and since when.
    """

    ces: Mapping[str, CEMemory] = field(default_factory=dict)
    credential: Breaker = Breaker()
    surplus_since: datetime | None = None
    strays: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True)
class Submit:
    """Send n pilots."""

    ce: str
    n: int
    because: str


@dataclass(frozen=True)
class Cancel:
    """End these pilots."""

    ce: str
    pilots: tuple[int, ...]
    because: str


@dataclass(frozen=True)
class Bench:
    """Give a node's pilots no more jobs for a while."""

    node: str
    until: datetime
    because: str


@dataclass(frozen=True)
class Wait:
    """Do nothing; where ``ce`` is empty, nowhere."""

    ce: str
    because: str


Decision = Submit | Cancel | Bench | Wait


@dataclass(frozen=True)
class Plan:
    """What to do, in this order, and what to remember."""

    decisions: tuple[Decision, ...]
    memory: Memory


def spend(known: CEMemory, n: int, per_minute: int, now: datetime) -> tuple[CEMemory, float]:
    """Take n calls from an element's budget; the seconds to wait where it is used up, and then nothing is taken."""
    full = float(max(per_minute, n))
    tokens = full if known.rpc_tokens is None or known.rpc_at is None else known.rpc_tokens
    if known.rpc_at is not None:
        tokens = min(full, tokens + max(0.0, (now - known.rpc_at).total_seconds()) * per_minute / 60)
    if tokens >= n:
        return replace(known, rpc_tokens=tokens - n, rpc_at=now), 0.0
    return replace(known, rpc_tokens=tokens, rpc_at=now), (n - tokens) * 60 / per_minute


def sentence(decision: Decision) -> str:
    """The decision for a person."""
    match decision:
        case Submit(ce, n, because):
            return f"send {_pilots(n)} to {ce}: {because}"
        case Cancel(ce, pilots, because):
            return f"cancel {_pilots(len(pilots))} at {ce}: {because}"
        case Bench(node, _, because):
            return f"give no jobs to node {node}: {because}"
        case Wait(ce, because):
            return f"nothing for {ce}: {because}" if ce else f"nothing: {because}"


def span(delta: timedelta) -> str:
    """A duration for a person: ``90 s``, ``15 min``, ``6 h``."""
    seconds = max(0, round(delta.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    return f"{round(seconds / 60)} min" if seconds < 7200 else f"{round(seconds / 3600)} h"


def _pilots(n: int) -> str:
    return "1 pilot" if n == 1 else f"{n} pilots"
