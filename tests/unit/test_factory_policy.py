"""The pilot factory's judgement: every decision and its reason, and sites that misbehave, simulated by the minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.computing.ces import KubernetesCE, LocalCE
from airpanda.computing.factory import breakers
from airpanda.computing.factory.policy import decide
from airpanda.computing.factory.values import (
    BatchOutcome,
    Bench,
    Breaker,
    Cancel,
    CEMemory,
    CEView,
    Decision,
    Demand,
    Memory,
    NodeView,
    Plan,
    Submit,
    View,
    Wait,
    Waiting,
    sentence,
    spend,
)
from airpanda.computing.queues import FactoryRules, PandaQueue, PilotStart, Slot

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
START = PilotStart(code="/c", dispatcher_url="https://x", ca_dir="/ca", proxy="/p")
GOOD = BatchOutcome(1, pilots=1, registered=1)
PROVEN = {"batches": (GOOD,)}


def queue(cores: int = 1, state: str = "online", walltime_s: int = 7200, **rules: Any) -> PandaQueue:
    ce = LocalCE(kind="local", directory="/d")
    factory = FactoryRules(**{"enabled": True, "first_batch": 100} | rules)
    slot = Slot(cores=cores, walltime_s=walltime_s)
    return PandaQueue("Q", ce, START, slot=slot, state=state, factory=factory)


def view(waiting: int = 0, *ces: CEView, cores: int | None = None, **more: Any) -> View:
    demand = Demand(waiting, waiting if cores is None else cores)
    return View(demand, ces or (CEView("ce", **PROVEN),), **more)


def waiting(*pilots: int, age_s: float = 10.0, unheard_s: float = 0.0) -> tuple[Waiting, ...]:
    return tuple(Waiting(pilot, age_s, unheard_s) for pilot in pilots)


def plan(a_queue: PandaQueue, a_view: View, memory: Memory | None = None, now: datetime = NOW) -> Plan:
    return decide(a_queue, a_view, memory or Memory(), now)


def told(found: Plan) -> list[str]:
    return [sentence(decision) for decision in found.decisions]


def sent(found: Plan) -> dict[str, int]:
    return {each.ce: each.n for each in found.decisions if isinstance(each, Submit)}


# --- how many ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a_queue", "a_view", "n"),
    [
        (queue(), view(5), 5),
        (queue(), view(0), 0),
        (queue(cores=8), view(20), 3),
        (queue(cores=8), view(20, cores=80), 10),
        (queue(), view(5, CEView("ce", idle=2, queued=waiting(1), **PROVEN)), 2),
        (queue(), view(5, CEView("ce", busy=50, **PROVEN)), 5),
        (queue(min_idle=3), view(0), 3),
        (queue(max_pilots=10), view(50, CEView("ce", busy=8, **PROVEN)), 2),
        (queue(max_pilots=10), view(50, CEView("ce", busy=10, **PROVEN)), 0),
        (queue(), view(50), 10),
        (queue(min_queued=0), view(50), 0),
        (queue(), view(500, CEView("ce", busy=40, **PROVEN)), 40),
        (queue(running_ratio=0.5), view(500, CEView("ce", busy=40, **PROVEN)), 20),
        (queue(max_queued=15), view(500, CEView("ce", busy=40, queued=waiting(1, 2), **PROVEN)), 13),
        (queue(max_per_cycle=7), view(500, CEView("ce", busy=40, **PROVEN)), 7),
    ],
)
def test_how_many(a_queue: PandaQueue, a_view: View, n: int) -> None:
    found = plan(a_queue, a_view)
    assert sum(sent(found).values()) == n, told(found)


def test_the_limit_that_decides_is_named() -> None:
    assert "max_pilots = 10" in told(plan(queue(max_pilots=10), view(50, CEView("ce", busy=9, **PROVEN))))[0]
    assert "no more than 10 may wait" in told(plan(queue(), view(50)))[0]
    assert told(plan(queue(), view(2, CEView("ce", idle=2)))) == [
        "nothing: 2 jobs wait, which 2 pilots can take; 2 idle and 0 waiting pilots are there"
    ]


def test_a_queue_that_is_off_gets_nothing_and_an_offline_one_loses_its_waiting_pilots() -> None:
    there = CEView("ce", queued=waiting(1, 2), busy=1)
    assert told(plan(queue(enabled=False), view(9, there))) == ["nothing: [factory] enabled is false in its file"]
    assert told(plan(queue(state="offline"), view(9, there))) == [
        "cancel 2 pilots at ce: the queue is offline",
        "nothing: the queue is offline",
    ]


# --- slow start, surplus, overdue ----------------------------------------------------------------------------


def test_slow_start_doubles_after_good_submissions_and_halves_after_eaten_ones() -> None:
    rules = queue(first_batch=1, min_queued=100)
    memory, batches, sizes = Memory(), (), []
    for number in range(1, 8):
        found = plan(rules, view(1000, CEView("ce", batches=batches)), memory)
        memory = found.memory
        sizes.append(sent(found)["ce"])
        batches = (BatchOutcome(number, pilots=sizes[-1], registered=sizes[-1]), *batches)
    assert sizes == [1, 2, 4, 8, 16, 32, 64]
    batches = (BatchOutcome(8, pilots=64, eaten=64), *batches)
    assert sent(plan(rules, view(1000, CEView("ce", batches=batches)), memory)) == {"ce": 50}  # of max_per_cycle = 100


def test_surplus_waiting_pilots_go_first_the_youngest_and_not_at_once() -> None:
    ce = CEView("ce", queued=(Waiting(1, 500.0), Waiting(2, 10.0), Waiting(3, 50.0)), busy=4, **PROVEN)
    first = plan(queue(), view(1, ce))
    assert sent(first) == {}
    assert not any(isinstance(each, Cancel) for each in first.decisions)
    later = plan(queue(), view(1, ce), first.memory, NOW + timedelta(minutes=6))
    assert [each.pilots for each in later.decisions if isinstance(each, Cancel)] == [(2, 3)]
    again = plan(queue(), view(9, ce), first.memory, NOW + timedelta(minutes=2))
    assert again.memory.surplus_since is None


def test_pilots_that_wait_for_ever_or_run_unheard_are_cancelled() -> None:
    mute = CEView(
        "ce",
        queued=(Waiting(1, 200_000.0), Waiting(2, 2000.0, unheard_s=1000.0), Waiting(3, 2000.0)),
        silent=(Waiting(4, 9000.0, unheard_s=1000.0), Waiting(5, 9000.0, unheard_s=100.0)),
        **PROVEN,
    )
    found = plan(queue(), view(0, mute))
    cancels = {each.pilots: each.because for each in found.decisions if isinstance(each, Cancel)}
    assert set(cancels) == {(1,), (4, 2)}
    assert "not heard of" in cancels[4, 2]


# --- where to ------------------------------------------------------------------------------------------------


def test_elements_that_start_pilots_and_soon_get_more() -> None:
    good = tuple(BatchOutcome(n, 10, registered=10) for n in range(1, 4))
    bad = tuple(BatchOutcome(n, 10, registered=4, eaten=6) for n in range(4, 7))
    ces = (
        CEView("fast", batches=good, median_queue_s=60.0, busy=100),
        CEView("slow", batches=good, median_queue_s=3600.0, busy=100),
        CEView("flaky", batches=bad, median_queue_s=60.0, busy=100),
    )
    shares = sent(plan(queue(), view(90, *ces)))
    assert shares["fast"] > shares["flaky"] > shares["slow"] >= 0
    assert sum(shares.values()) == 90


def test_what_one_element_cannot_take_goes_to_the_others() -> None:
    ces = (CEView("new", median_queue_s=1.0), CEView("old", **PROVEN, busy=50))
    memory = Memory(ces={"new": CEMemory(step=2), "old": CEMemory(step=100, judged=9)})
    assert sent(plan(queue(), view(20, *ces), memory)) == {"new": 2, "old": 18}


def test_a_site_that_asks_for_patience_gets_it() -> None:
    busy = CEMemory(step=100, busy_until=NOW + timedelta(seconds=90), busy_reason="too many jobs")
    found = plan(queue(), view(5), Memory(ces={"ce": busy}))
    assert told(found) == ["nothing for ce: the site asked for patience for 90 s more: too many jobs"]
    assert sent(plan(queue(), view(5), found.memory, NOW + timedelta(seconds=91))) == {"ce": 5}


def test_calls_to_an_element_are_bounded_by_the_minute_and_saved_up_for_one_minute_at_most() -> None:
    known, waits = CEMemory(), list[float]()
    for _ in range(4):
        known, wait_s = spend(known, 1, 3, NOW)
        waits.append(wait_s)
    assert waits == [0, 0, 0, 20]
    for seconds, wait_s in ((10, 10), (20, 0), (20.5, 19.5), (3620, 0), (3620, 0), (3620, 0), (3620, 20)):
        known, told_s = spend(known, 1, 3, NOW + timedelta(seconds=seconds))
        assert told_s == pytest.approx(wait_s), seconds
    known, told_s = spend(CEMemory(), 5, 3, NOW)
    assert told_s == 0, "what needs more than a minute's budget is not refused for ever"
    assert spend(known, 1, 3, NOW)[1] == 20


def test_what_an_element_does_not_accept_is_not_repeated_until_the_file_changes_or_an_hour_is_over() -> None:
    until = NOW + timedelta(hours=1)
    refused = CEMemory(step=100, refused=queue().fingerprint, refused_reason="no such partition", refused_until=until)
    memory = Memory(ces={"ce": refused})
    assert "(no such partition): correct the queue file" in told(plan(queue(), view(5), memory))[0]
    assert sent(plan(queue(), view(5), memory, until - timedelta(seconds=1))) == {}
    assert sent(plan(queue(), view(5), memory, until)) == {"ce": 1}
    assert sent(plan(queue(max_pilots=999), view(5), memory)) == {"ce": 5}


@pytest.mark.parametrize(("hours", "n"), [(3.0, 0), (3.3, 5), (72.0, 5)])
def test_no_pilot_outlives_its_credential(hours: float, n: int) -> None:
    """2 h walltime, 1 h margin, 2 × 5 min in the queue."""
    ce = CEView("ce", median_queue_s=300.0, **PROVEN)
    memory = Memory(ces={"ce": CEMemory(step=100, credential_end=NOW + timedelta(hours=hours))})
    found = plan(queue(), view(5, ce), memory)
    assert sum(sent(found).values()) == n
    if not n:
        assert "credential there ends in 3 h, and a pilot needs it for 3 h" in told(found)[0]


def test_where_the_factory_keeps_the_credential_no_pilot_goes_before_it_is_there() -> None:
    """A site that keeps the pilots' proxy by itself is not waited for."""
    far = KubernetesCE("kubernetes", "https://k", "/ca", "pilots", "image")
    keeping = replace(queue(credential="robot"), more_ces={"far": far})
    ces = (CEView("local:Q", **PROVEN), CEView("far", **PROVEN))
    found = plan(keeping, view(5, *ces))
    assert sent(found) == {"far": 5}
    assert "nothing for local:Q: the pilots' credential 'robot' has not been put there yet" in told(found)
    there = Memory(ces={"local:Q": CEMemory(credential_end=NOW + timedelta(days=1))})
    assert set(sent(plan(keeping, view(5, *ces), there))) == {"local:Q", "far"}


def test_a_refused_credential_stops_all_elements_and_is_tried_by_one_pilot_later() -> None:
    memory = Memory(credential=breakers.refused_credential(Breaker(), "expired", NOW))
    first = plan(queue(), view(5), memory)
    assert "the credential was refused (expired); tried again in 5 min" in told(first)[0]
    assert sent(plan(queue(), view(5), first.memory, NOW + timedelta(minutes=5))) == {"ce": 1}
    twice = breakers.refused_credential(first.memory.credential, "expired", NOW + timedelta(minutes=5))
    assert twice.open_until == NOW + timedelta(minutes=15)


# --- breakers ------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """An element as a site makes it. Pilots register, or are eaten, so many minutes after their submission."""

    eats: bool = False
    delay: int = 1
    batches: list[tuple[int, BatchOutcome]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def take(self, minute: int, n: int) -> None:
        self.batches.append((minute, BatchOutcome(next(self.numbers), pilots=n)))

    def live(self, minute: int) -> None:
        """What a minute does to pilots that are pending."""
        for number, (at, batch) in enumerate(self.batches):
            if batch.pending and minute - at >= self.delay:
                end = {"eaten": batch.pilots} if self.eats else {"registered": batch.pilots}
                self.batches[number] = (at, replace(batch, **end))

    def view(self, name: str = "ce") -> CEView:
        batches = [batch for _, batch in self.batches]
        pending = sum(batch.pending for batch in batches)
        queued = tuple(Waiting(n, 10.0) for n in range(pending))
        return CEView(name, queued=queued, busy=min(50, sum(b.registered for b in batches)), batches=batches[::-1])


def run(site: Site, minutes: range, memory: Memory, rules: PandaQueue) -> tuple[Memory, list[int]]:
    """The minutes in which something was submitted, with as much work as can be."""
    at = []
    for minute in minutes:
        site.live(minute)
        found = plan(rules, view(10_000, site.view()), memory, NOW + timedelta(minutes=minute))
        memory = found.memory
        for n in sent(found).values():
            site.take(minute, n)
            at.append(minute)
    return memory, at


@pytest.mark.parametrize("delay", [1, 3, 10, 60])
@pytest.mark.parametrize("proven", [False, True])
def test_an_element_that_eats_pilots_is_stopped_within_five_submissions_and_recovers_by_itself(
    delay: int, proven: bool
) -> None:
    rules = queue(first_batch=1)
    site, memory, minute = Site(delay=delay), Memory(), 0
    if proven:
        memory, _ = run(site, range(100), memory, rules)
        minute = 100
        assert any(batch.is_good for _, batch in site.batches)
        # What is under way is judged before the site falls ill, so that all that follows is eaten.
        site.live(10**6)
        site.batches = [(at, batch) for at, batch in site.batches if not batch.pending]
    site.eats = True
    submissions = 0
    while not memory.ces or not memory.ces["ce"].breaker.opened:
        memory, at = run(site, range(minute, minute + 1), memory, rules)
        submissions += len(at)
        minute += 1
        assert submissions <= 5
    # While it eats, the probes are single pilots, ever more seldom.
    before = len(site.batches)
    memory, probes = run(site, range(minute, minute + 24 * 60), memory, rules)
    assert 3 <= len(probes) <= 10
    assert {batch.pilots for _, batch in site.batches[before:]} == {1}
    gaps = [later - sooner for sooner, later in pairwise(probes)]
    assert gaps == sorted(gaps)
    # It is well again: the next probe shows it, and the size grows from the start.
    site.eats = False
    minute += 24 * 60
    before = len(site.batches)
    memory, at = run(site, range(minute, minute + 7 * 60 + 10 * delay), memory, rules)
    assert memory.ces["ce"].breaker.opened == 0
    sizes = [batch.pilots for _, batch in site.batches[before:]]
    assert sizes[0] <= 2
    assert max(sizes) >= 8


def test_most_pilots_eaten_opens_it_too_and_cancelled_ones_say_nothing() -> None:
    some = BatchOutcome(1, pilots=10, registered=1, eaten=9)
    breaker, gate = breakers.judge(Breaker(), [some], NOW)
    assert (breaker.opened, gate.is_shut) == (1, True)
    assert "9 of its last 10 pilots" in gate.because
    ours = [BatchOutcome(n, pilots=10, cancelled=10) for n in range(5, 0, -1)]
    assert breakers.judge(Breaker(), ours, NOW)[0] == Breaker()


def test_calls_that_fail_in_a_row_open_it_and_one_good_call_forgets_them() -> None:
    breaker = Breaker()
    for _ in range(2):
        breaker = breakers.failed_call(breaker, "no answer", NOW)
    assert breakers.good_call(breaker, NOW).errors == 0
    breaker = breakers.failed_call(breaker, "no answer", NOW)
    assert breaker.opened == 1
    assert breakers.judge(breaker, [GOOD], NOW)[1].is_shut
    assert breakers.good_call(breaker, NOW).opened == 1
    assert breakers.failed_call(breaker, "no answer", NOW) == breaker
    later = NOW + timedelta(minutes=5)
    assert breakers.judge(breaker, [GOOD], later)[1].limit == 1
    assert breakers.failed_call(breaker, "no answer", later).open_until == later + timedelta(minutes=10)
    assert breakers.good_call(breaker, later) == Breaker()


def test_an_element_that_answers_and_takes_no_pilots_is_left_alone_too() -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker = breakers.good_call(breakers.failed_call(breaker, "full disk", NOW, "submission"), NOW)
    assert breaker.opened == 1
    later = NOW + timedelta(minutes=5)
    assert breakers.good_call(breaker, later) == breaker
    assert breakers.good_call(breaker, later, "submission") == Breaker()


def test_one_bad_element_does_not_stop_the_other() -> None:
    rules = queue(first_batch=1)
    bad, good, memory = Site(eats=True), Site(), Memory()
    for minute in range(60):
        for site in (bad, good):
            site.live(minute)
        found = plan(rules, view(10_000, bad.view("bad"), good.view("good")), memory, NOW + timedelta(minutes=minute))
        memory = found.memory
        for name, n in sent(found).items():
            {"bad": bad, "good": good}[name].take(minute, n)
    assert sum(batch.pilots for _, batch in bad.batches) < 10
    assert sum(batch.pilots for _, batch in good.batches) > 50


# --- nodes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "benched"),
    [
        ([NodeView("hole", 3, short=3)], ["hole"]),
        ([NodeView("once", 1, short=1)], []),
        ([NodeView("mixed", 9, short=4, jobs_done=5)], []),
        ([NodeView("hole", 2, jobs_failed=9), NodeView("ok", 2, jobs_done=9)], ["hole"]),
        ([NodeView("hole", 2, jobs_failed=9), NodeView("as bad", 2, jobs_failed=9)], []),
        ([NodeView("alone", 2, jobs_failed=99)], []),
        ([NodeView("hole", 2, jobs_failed=9, jobs_done=1), NodeView("ok", 2, jobs_done=9, jobs_failed=1)], ["hole"]),
    ],
)
def test_black_holes_are_told_from_bad_payloads(nodes: list[NodeView], benched: list[str]) -> None:
    found = plan(queue(), view(0, nodes=nodes))
    assert [each.node for each in found.decisions if isinstance(each, Bench)] == benched


def test_a_benched_node_is_not_benched_again_before_its_time_is_over() -> None:
    hole = NodeView("hole", 3, short=3)
    until = NOW + timedelta(minutes=1)
    known = view(0, nodes=[hole], bad_nodes={"hole": until})
    assert not any(isinstance(each, Bench) for each in plan(queue(), known).decisions)
    assert any(isinstance(each, Bench) for each in plan(queue(), known, now=until).decisions)


# --- whatever comes ------------------------------------------------------------------------------------------

_batches = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), max_size=6).map(
    lambda rows: tuple(BatchOutcome(99 - n, a + b + c, a, b) for n, (a, b, c) in enumerate(rows))
)
_pilots = st.lists(st.builds(Waiting, st.integers(1, 10**6), st.floats(0, 10**6), st.floats(0, 2000)), max_size=20)
_ce: Callable[[str], Any] = lambda name: st.builds(  # noqa: E731
    CEView, st.just(name), _pilots, st.integers(0, 60), st.integers(0, 60), _pilots, _batches, st.floats(0, 10**5)
)
_rules = st.builds(
    queue, cores=st.integers(1, 64), max_pilots=st.integers(1, 99), max_queued=st.integers(10, 99),
    min_queued=st.integers(0, 10), min_idle=st.integers(0, 9), max_per_cycle=st.integers(1, 50),
    first_batch=st.integers(1, 5), running_ratio=st.floats(0, 3),
)  # fmt: skip


@given(_rules, st.integers(0, 10**5), _ce("a"), _ce("b"), st.integers(0, 600))
def test_no_limit_is_ever_exceeded_and_every_decision_has_a_reason(
    rules: PandaQueue, jobs: int, one: CEView, two: CEView, minutes: int
) -> None:
    a_view, now = view(jobs, one, two), NOW + timedelta(minutes=minutes)
    memory = plan(rules, a_view).memory
    found = plan(rules, a_view, memory, now)
    assert found == plan(rules, a_view, memory, now)
    n, live = sum(sent(found).values()), one.live + two.live
    assert n <= rules.factory.max_per_cycle
    assert n == 0 or live + n <= rules.factory.max_pilots
    assert n <= max(jobs, rules.factory.min_idle)
    assert len(found.decisions) > 0
    assert all(len(sentence(each).split(": ", 1)[1]) > 10 for each in found.decisions)
    assert not (n and any(isinstance(each, Cancel) and "are there" in each.because for each in found.decisions))
    kinds: set[type[Decision]] = {type(each) for each in found.decisions}
    assert kinds <= {Submit, Cancel, Bench, Wait}
