"""When to leave a computing element, a credential or a node alone, and when to try again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import takewhile

from airpanda.computing.factory.values import (
    BatchOutcome,
    Bench,
    Breaker,
    CallKind,
    CEMemory,
    CEView,
    NodeView,
    span,
)

EATEN_IN_A_ROW = 3
"""So many submissions in a row without a pilot that registers open the breaker."""
ERRORS_IN_A_ROW = 3
BAD_SHARE, OF_PILOTS = 0.8, 10
"""Or this share of at least so many judged pilots."""
UNPROVEN = 2
"""So many submissions may be under way to an element of which no pilot has registered yet."""
DOUBTFUL = 4
"""So many that came to nothing or are under way, once one has come to nothing."""
FIRST_PAUSE = timedelta(minutes=5)
LONGEST_PAUSE = timedelta(hours=6)
REFUSED_FOR = timedelta(hours=1)
"""After so long one pilot tries an element that has refused the queue's description."""
NODE_BENCH = timedelta(hours=1)
SHORT_PILOTS = 3
FAILED_JOBS = 5
BLACK_HOLE_SHARE = 0.8
OTHERS_SHARE = 0.5


@dataclass(frozen=True)
class Gate:
    """Whether an element may get pilots: ``limit`` of them (None: no limit), and a sentence if it is shut or narrow."""

    limit: int | None
    because: str = ""

    @property
    def is_shut(self) -> bool:
        return self.limit == 0


def judge(breaker: Breaker, batches: Sequence[BatchOutcome], now: datetime) -> tuple[Breaker, Gate]:
    """The breaker of an element after what came of its latest submissions (the newest first)."""
    fresh = [batch for batch in batches if batch.batch_id > breaker.since]
    if breaker.by_calls:
        return breaker, _by_time(breaker, now)
    if breaker.opened:
        return _judge_open(breaker, fresh, now)
    reason = _reason_to_open(fresh)
    if reason:
        return _open(breaker, fresh, now, reason)
    return breaker, _doubtful(fresh, batches)


def failed_call(breaker: Breaker, reason: str, now: datetime, kind: CallKind = "question") -> Breaker:
    """After a call that the element did not answer, or answered with a fault of its own."""
    if breaker.is_open(now):
        return breaker
    errors = breaker.errors + 1
    if breaker.opened or errors >= ERRORS_IN_A_ROW:
        opened = _opened(breaker, (), now, f"its calls fail, the last one with: {reason}")
        return replace(opened, by_calls=True, failing=kind)
    return replace(breaker, errors=errors, failing=kind)


def good_call(breaker: Breaker, now: datetime, kind: CallKind = "question") -> Breaker:
    """After an answer. It closes a breaker that calls have opened, when its time is over; pilots must close others."""
    if kind == "question" and breaker.failing == "submission":
        return breaker
    if breaker.by_calls and not breaker.is_open(now):
        return Breaker(since=breaker.since)
    return replace(breaker, errors=0)


def refused_credential(breaker: Breaker, reason: str, now: datetime) -> Breaker:
    """A credential that is refused once will be refused again: its breaker opens at once."""
    return _opened(breaker, (), now, reason)


def description_gate(known: CEMemory, fingerprint: str, now: datetime) -> Gate:
    """Whether an element may be sent what it has refused for good; a changed queue file is something else."""
    if known.refused != fingerprint:
        return Gate(None)
    if known.refused_until is not None and now < known.refused_until:
        left = span(known.refused_until - now)
        why = f"it does not accept this queue's pilots ({known.refused_reason})"
        return Gate(0, f"{why}: correct the queue file, or what it names at the site; tried again in {left}")
    return Gate(1, "it has refused this queue's pilots before: one pilot tries it")


def credential_gate(breaker: Breaker, now: datetime) -> Gate:
    """Whether the pilots' credential may be used: half open, one pilot tries it."""
    if not breaker.opened or breaker.open_until is None:
        return Gate(None)
    if now < breaker.open_until:
        left = span(breaker.open_until - now)
        return Gate(0, f"the credential was refused ({breaker.reason}); tried again in {left}")
    return Gate(1, "the credential was refused before: one pilot tries it")


def _judge_open(breaker: Breaker, fresh: Sequence[BatchOutcome], now: datetime) -> tuple[Breaker, Gate]:
    good = [batch for batch in fresh if batch.is_good]
    if good:
        return Breaker(since=min(batch.batch_id for batch in good) - 1), Gate(None)
    if any(batch.pending > 0 for batch in fresh):
        return breaker, Gate(0, "the one pilot that tries the element has not registered yet")
    if any(batch.is_eaten for batch in fresh):
        return _open(breaker, fresh, now, "the pilot that tried it ended without a word, too")
    return breaker, _by_time(breaker, now)


def _by_time(breaker: Breaker, now: datetime) -> Gate:
    if breaker.open_until is not None and now < breaker.open_until:
        return Gate(0, f"left alone for {span(breaker.open_until - now)} more: {breaker.reason}")
    return Gate(1, "it was left alone for a while: one pilot tries it")


def _reason_to_open(fresh: Sequence[BatchOutcome]) -> str:
    judged = [batch for batch in fresh if batch.is_good or batch.is_eaten]
    eaten = len(list(takewhile(lambda batch: batch.is_eaten, judged)))
    if eaten >= EATEN_IN_A_ROW:
        return f"of its last {eaten} submissions no pilot ever registered"
    pilots = sum(batch.registered + batch.eaten for batch in judged)
    bad = sum(batch.eaten for batch in judged)
    if pilots >= OF_PILOTS and judged[0].eaten and bad >= BAD_SHARE * pilots:
        return f"{bad} of its last {pilots} pilots ended without ever registering"
    return ""


def _open(breaker: Breaker, fresh: Sequence[BatchOutcome], now: datetime, reason: str) -> tuple[Breaker, Gate]:
    opened = _opened(breaker, fresh, now, reason)
    return opened, Gate(0, f"left alone for {span(_pause(opened.opened))}: {reason}")


def _opened(breaker: Breaker, fresh: Iterable[BatchOutcome], now: datetime, reason: str) -> Breaker:
    opened = breaker.opened + 1
    since = max((batch.batch_id for batch in fresh), default=breaker.since)
    return Breaker(opened=opened, open_until=now + _pause(opened), since=since, reason=reason)


def _pause(opened: int) -> timedelta:
    return min(FIRST_PAUSE * (1 << min(opened - 1, 16)), LONGEST_PAUSE)


def _doubtful(fresh: Sequence[BatchOutcome], batches: Sequence[BatchOutcome]) -> Gate:
    """Few submissions at a time while no pilot has registered lately, and while the latest ones come to nothing."""
    since_good = list(takewhile(lambda batch: not batch.is_good, fresh))
    under_way = sum(batch.pending > 0 for batch in since_good)
    if not any(batch.is_good for batch in batches) and under_way >= UNPROVEN:
        return Gate(0, f"no pilot has registered from it yet, and {under_way} submissions are under way")
    eaten = sum(batch.is_eaten for batch in since_good)
    if eaten and eaten + under_way >= DOUBTFUL:
        return Gate(0, f"{eaten} of its latest submissions came to nothing, and {under_way} are under way")
    return Gate(None)


def success(ce: CEView) -> float:
    """The share of its lately judged pilots that registered, between 0 and 1; one half where nothing is known."""
    registered = sum(batch.registered for batch in ce.batches)
    eaten = sum(batch.eaten for batch in ce.batches)
    return (registered + 1) / (registered + eaten + 2)


def weight(ce: CEView) -> float:
    """Elements that start pilots, and soon, get more of them."""
    return success(ce) / (60.0 + (ce.median_queue_s if ce.median_queue_s is not None else 600.0))


def bad_nodes(nodes: Sequence[NodeView], now: datetime) -> list[Bench]:
    """Black holes: nodes whose pilots end at once, or whose payloads fail where those of other nodes do not."""
    return [Bench(node.node, now + NODE_BENCH, why) for node in nodes if (why := _black_hole(node, nodes))]


def _black_hole(node: NodeView, nodes: Sequence[NodeView]) -> str:
    for_long = f"; tried again in {span(NODE_BENCH)}"
    if node.short >= SHORT_PILOTS and node.short >= BLACK_HOLE_SHARE * node.pilots:
        return f"{node.short} of its {node.pilots} latest pilots ended at once or refused to work{for_long}"
    jobs = node.jobs_done + node.jobs_failed
    if node.jobs_failed < FAILED_JOBS or node.jobs_failed < BLACK_HOLE_SHARE * jobs:
        return ""
    others_done = sum(other.jobs_done for other in nodes if other.node != node.node)
    others_failed = sum(other.jobs_failed for other in nodes if other.node != node.node)
    others = others_done + others_failed
    if others < FAILED_JOBS or others_failed > OTHERS_SHARE * others:
        return ""  # everywhere, or nobody to compare with: it may be the payloads
    return f"{node.jobs_failed} of {jobs} payloads failed there, and {others_failed} of {others} elsewhere{for_long}"
