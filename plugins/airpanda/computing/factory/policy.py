"""From demand, pilots, limits and memory to decisions, each with its reason. No I/O, no clock of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from airpanda.computing.ces import KEEPS_ITS_PROXY
from airpanda.computing.factory.breakers import Gate, bad_nodes, credential_gate, description_gate, judge, weight
from airpanda.computing.factory.values import (
    Bench,
    Cancel,
    CEMemory,
    CEView,
    Decision,
    Memory,
    Plan,
    Submit,
    View,
    Wait,
    Waiting,
    span,
)
from airpanda.computing.queues import FactoryRules, PandaQueue

SURPLUS_AFTER = timedelta(minutes=5)
"""Pilots that wait without need are cancelled when they have been too many for so long."""


@dataclass(frozen=True)
class _Room:
    """How many pilots may be sent now, and what sets the limit."""

    n: int
    because: str


def decide(queue: PandaQueue, view: View, memory: Memory, now: datetime) -> Plan:
    """What to do now for one queue. The same arguments always give the same plan."""
    judged = {ce.name: _judge(ce, memory.ces.get(ce.name, CEMemory()), queue.factory, now) for ce in view.ces}
    memory = replace(memory, ces={name: remembered for name, (remembered, _) in judged.items()})
    benches: list[Decision] = [bench for bench in bad_nodes(view.nodes, now) if _is_news(bench, view, now)]
    overdue = [decision for ce in view.ces for decision in _overdue(ce, queue.factory)]
    if not (queue.is_online and queue.factory.enabled):
        why = "the queue is offline" if not queue.is_online else "[factory] enabled is false in its file"
        surplus = _all_queued(view.ces, why) if not queue.is_online else []
        return Plan((*benches, *overdue, *surplus, Wait("", why)), replace(memory, surplus_since=None))
    gone = {pilot for decision in overdue for pilot in decision.pilots}
    queued = sum(waiting.pilot_id not in gone for ce in view.ces for waiting in ce.queued)
    idle, busy = sum(ce.idle for ce in view.ces), sum(ce.busy for ce in view.ces)
    needed, need = _needed(queue, view)
    missing = needed - idle - queued
    there = f"{need}; {idle} idle and {queued} waiting pilots are there"
    if missing <= 0:
        surplus, since = _surplus(view.ces, -missing, gone, memory.surplus_since, there, now)
        waits = () if surplus else (Wait("", there),)
        return Plan((*benches, *overdue, *surplus, *waits), replace(memory, surplus_since=since))
    memory = replace(memory, surplus_since=None)
    live = sum(ce.live for ce in view.ces)
    room = _room(queue.factory, missing, queued, idle + busy, live, there)
    if room.n <= 0:
        return Plan((*benches, *overdue, Wait("", room.because)), memory)
    gates = {name: _gate(queue, view, name, judged, memory, now) for name in judged}
    return Plan((*benches, *overdue, *_spread(view.ces, room, gates)), memory)


def _judge(ce: CEView, known: CEMemory, rules: FactoryRules, now: datetime) -> tuple[CEMemory, Gate]:
    """Breaker and slow start after what came of the latest submissions."""
    breaker, gate = judge(known.breaker, ce.batches, now)
    if breaker.opened and not breaker.by_calls:
        return replace(known, breaker=breaker, step=rules.first_batch), gate
    step = known.step or rules.first_batch
    judged = known.judged
    for batch in sorted(ce.batches, key=lambda batch: batch.batch_id):
        if batch.batch_id <= judged or not (batch.is_good or batch.is_eaten):
            continue
        # Only a submission as large as was allowed shows that the element can take twice as many.
        if batch.is_good and batch.pilots * 2 > step:
            step = min(step * 2, rules.max_per_cycle)
        elif batch.is_eaten:
            step = max(rules.first_batch, step // 2)
        judged = batch.batch_id
    return replace(known, breaker=breaker, step=step, judged=judged), gate


def _needed(queue: PandaQueue, view: View) -> tuple[int, str]:
    """How many pilots the waiting jobs could fill."""
    side_by_side = queue.pilot.max_payloads or queue.slot.cores
    by_number = math.ceil(view.demand.waiting / side_by_side)
    by_cores = math.ceil(view.demand.waiting_cores / queue.slot.cores)
    needed = max(by_number, by_cores, queue.factory.min_idle)
    return needed, f"{view.demand.waiting} jobs wait, which {needed} pilots can take"


def _room(rules: FactoryRules, missing: int, queued: int, running: int, live: int, there: str) -> _Room:
    """The smallest limit decides, and is named."""
    may_queue = min(max(rules.min_queued, math.floor(running * rules.running_ratio)), rules.max_queued)
    limits = (
        _Room(missing, there),
        _Room(
            may_queue - queued,
            f"{there}, and no more than {may_queue} may wait while {running} run (running_ratio, min_ and max_queued)",
        ),
        _Room(
            rules.max_pilots - live,
            f"{there}, and max_pilots = {rules.max_pilots} with {live} pilots in all",
        ),
        _Room(rules.max_per_cycle, f"{there}, and max_per_cycle = {rules.max_per_cycle}"),
    )
    return min(limits, key=lambda room: room.n)


def _gate(
    queue: PandaQueue,
    view: View,
    name: str,
    judged: Mapping[str, tuple[CEMemory, Gate]],
    memory: Memory,
    now: datetime,
) -> Gate:
    """The narrowest gate in front of one element."""
    known, breaker = judged[name]
    description = description_gate(known, queue.fingerprint, now)
    if description.is_shut:
        return description
    if known.busy_until is not None and now < known.busy_until:
        return Gate(0, f"the site asked for patience for {span(known.busy_until - now)} more: {known.busy_reason}")
    ce = next(ce for ce in view.ces if ce.name == name)
    lifetime = _lifetime(queue, ce, known, now)
    credential = credential_gate(memory.credential, now)
    gates = [breaker, description, credential, lifetime, Gate(known.step, "slow start")]
    return min(gates, key=lambda gate: math.inf if gate.limit is None else gate.limit)


def _lifetime(queue: PandaQueue, ce: CEView, known: CEMemory, now: datetime) -> Gate:
    """Never a pilot whose credential ends before it would: its time in the queue, its walltime and a margin."""
    if known.credential_end is None:
        name = queue.factory.credential
        if not name or isinstance(queue.ces.get(ce.name), KEEPS_ITS_PROXY):
            return Gate(None)
        return Gate(0, f"the pilots' credential {name!r} has not been put there yet")
    wait = timedelta(seconds=2 * ce.median_queue_s if ce.median_queue_s is not None else 600)
    needs = wait + timedelta(seconds=queue.slot.walltime_s + queue.factory.credential_margin_s)
    left = known.credential_end - now
    if left >= needs:
        return Gate(None)
    return Gate(0, f"the pilots' credential there ends in {span(left)}, and a pilot needs it for {span(needs)}")


def _spread(ces: Sequence[CEView], room: _Room, gates: Mapping[str, Gate]) -> list[Decision]:
    """n pilots over the elements by weight, each within its gate; what one cannot take, others may."""
    open_ces = [ce for ce in ces if not gates[ce.name].is_shut]
    left, shares = room.n, dict.fromkeys((ce.name for ce in open_ces), 0)
    total = sum(weight(ce) for ce in open_ces)
    for ce in sorted(open_ces, key=weight, reverse=True):
        limit = gates[ce.name].limit
        fair = math.ceil(room.n * weight(ce) / total)
        shares[ce.name] = min(fair, left, left if limit is None else limit)
        left -= shares[ce.name]
    for ce in sorted(open_ces, key=weight, reverse=True):
        limit = gates[ce.name].limit
        more = min(left, left if limit is None else limit - shares[ce.name])
        shares[ce.name] += more
        left -= more
    decisions: list[Decision] = []
    for ce in ces:
        gate, n = gates[ce.name], shares.get(ce.name, 0)
        if n:
            narrow = f"; {gate.because} allows {gate.limit}" if gate.limit == n and gate.because else ""
            decisions.append(Submit(ce.name, n, room.because + narrow))
        else:
            others = "other elements of the queue start pilots sooner"
            decisions.append(Wait(ce.name, gate.because if gate.is_shut else others))
    return decisions


def _overdue(ce: CEView, rules: FactoryRules) -> list[Cancel]:
    """Pilots that wait for ever, and pilots that the element runs and nobody hears."""
    found = []
    old = tuple(each.pilot_id for each in (*ce.queued, *ce.probes) if each.age_s > rules.queue_timeout_s)
    if old:
        found.append(Cancel(ce.name, old, f"waiting for more than queue_timeout_s = {rules.queue_timeout_s}"))
    mute = [each for each in (*ce.silent, *ce.queued, *ce.probes) if each.unheard_s > rules.silent_timeout_s]
    mute = [each for each in mute if each.pilot_id not in old]
    if mute:
        ids = tuple(each.pilot_id for each in mute)
        why = f"running, says the element, and not heard of for more than silent_timeout_s = {rules.silent_timeout_s}"
        found.append(Cancel(ce.name, ids, why))
    return found


def _surplus(
    ces: Sequence[CEView], n: int, gone: set[int], since: datetime | None, there: str, now: datetime
) -> tuple[list[Decision], datetime | None]:
    """The youngest waiting pilots that nobody needs; running ones end by themselves."""
    waiting = [(each, ce.name) for ce in ces for each in ce.queued if each.pilot_id not in gone and not each.unheard_s]
    if not waiting or n <= 0:
        return [], None
    if since is None or now - since < SURPLUS_AFTER:
        return [], since or now
    young = sorted(waiting, key=lambda pair: pair[0].age_s)[:n]
    return _cancels(young, f"{there}, for more than {span(SURPLUS_AFTER)}"), since


def _all_queued(ces: Sequence[CEView], why: str) -> list[Decision]:
    return _cancels([(each, ce.name) for ce in ces for each in ce.queued], why)


def _cancels(pilots: Sequence[tuple[Waiting, str]], why: str) -> list[Decision]:
    by_ce: dict[str, list[int]] = {}
    for waiting, name in pilots:
        by_ce.setdefault(name, []).append(waiting.pilot_id)
    return [Cancel(name, tuple(ids), why) for name, ids in by_ce.items()]


def _is_news(bench: Bench, view: View, now: datetime) -> bool:
    until = view.bad_nodes.get(bench.node)
    return until is None or until <= now
