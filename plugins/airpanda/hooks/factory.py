"""One cycle of the pilot factory for one queue: look, put in order what is open, decide, act, remember.

The dispatcher holds the truth and the lease; the computing elements are called from here, where their credentials are.
A cycle that is killed at any point leaves what the next one can finish: intents that are open, and a memory that is one
cycle old.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from airpanda.computing.elements import (
    BringsCredential,
    CECredentialError,
    CEUnavailableError,
    ComputingElement,
    ComputingElementError,
    Handle,
    InvalidDescriptionError,
    ListsTags,
    PilotJobState,
    Purgeable,
    Renewable,
    ThrottledError,
)
from airpanda.computing.factory import breakers
from airpanda.computing.factory.policy import decide
from airpanda.computing.factory.values import (
    BatchOutcome,
    Bench,
    Breaker,
    CallKind,
    Cancel,
    CEMemory,
    CEView,
    Decision,
    Demand,
    Memory,
    NodeView,
    Submit,
    View,
    Waiting,
    sentence,
    spend,
)
from airpanda.computing.queues import PandaQueue
from airpanda.core.clock import to_wire, utcnow
from airpanda.core.errors import AirpandaError, ConfigurationError, ConflictError, CredentialError
from airpanda.hooks import calls
from airpanda.hooks.submission import HOLD_S, SUBMIT_LIMIT_S, ElementOf, Send, ce_state, log_of, parts, submit, tell
from airpanda.messages import (
    BatchIntent,
    BatchRecord,
    BatchTake,
    FactoryBegin,
    FactoryEnd,
    FactoryView,
    KnownTags,
    LivePilot,
    NodeBench,
    OpenBatch,
    PilotLog,
    PilotSeen,
)
from airpanda.x509.credential import ProxyCredential

CYCLE_HOLD_S = 900
"""How long a cycle may take before another factory may have the queue."""
SUBMIT_AGAIN_FOR_S = 3600.0
"""A submission that broke off is repeated for so long; later the need has changed, and it is given up if not found."""
STRAYS_AFTER = timedelta(hours=1)
"""Pilots of this installation that are on no record are ended when they have been seen for so long."""
LONGEST_PATIENCE_S = 3600.0
_MEMORY = TypeAdapter(Memory)
log = logging.getLogger(__name__)

CredentialOf = Callable[[str, timedelta], ProxyCredential]
"""A fresh proxy of the pilots, by the name in ``[factory] credential``."""


@dataclass
class _Cycle:
    """What one cycle knows. ``said`` grows: every decision and every trouble, as a sentence."""

    queue: PandaQueue
    view: FactoryView
    memory: Memory
    ends_at: float
    elements: dict[str, ComputingElement] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    news: int = 0

    @property
    def fence(self) -> int:
        return self.view.fence

    def known(self, ce: str) -> CEMemory:
        return self.memory.ces.get(ce, CEMemory())

    def remember(self, ce: str, known: CEMemory) -> None:
        self.memory = replace(self.memory, ces={**self.memory.ces, ce: known})


@dataclass
class Factory:
    """The pilot factory, for any queue.

    Args:
        send: the dispatcher.
        element_of: makes a queue's computing element.
        holder: who this is, for people who find the queue held.
        credential_of: gives the pilots' fresh proxy; None: elements keep what they have.
    """

    send: Send
    element_of: ElementOf
    wrapper: Path
    holder: str
    credential_of: CredentialOf | None = None
    now: Callable[[], datetime] = utcnow

    def cycle(self, queue: str) -> list[str]:
        """Do for one queue what is to be done now; answer each decision as a sentence.

        Raises:
            ConflictError: another factory has the queue.
            AirpandaError: the dispatcher refuses or does not answer. What was begun is finished by a later cycle.
        """
        began = time.monotonic()
        view = self.send(calls.factory_begin(queue, FactoryBegin(holder=self.holder, hold_s=CYCLE_HOLD_S)))
        cycle = _Cycle(PandaQueue.from_wire(view.queue), view, _read(view.memory), began + CYCLE_HOLD_S)
        benches: list[Bench] = []
        try:
            self._settle(cycle)
            self._keep_credential(cycle)
            if self._observe(cycle):
                cycle.view = self.send(calls.factory(queue)).model_copy(update={"fence": cycle.fence})
            plan = decide(cycle.queue, to_view(cycle.queue, cycle.view), cycle.memory, self.now())
            cycle.memory = plan.memory
            for decision in plan.decisions:
                cycle.said.append(sentence(decision))
                if isinstance(decision, Bench):
                    benches.append(decision)
                self._act(cycle, decision)
        except AirpandaError as error:
            self._let_go(cycle, error)
            raise
        finally:
            for element in cycle.elements.values():
                element.close()
        self._end(cycle, benches)
        return cycle.said

    def dry_run(self, queue: str) -> list[str]:
        """What a cycle would decide from what is on record now. Touches no computing element and changes nothing."""
        view = self.send(calls.factory(queue))
        found = PandaQueue.from_wire(view.queue)
        plan = decide(found, to_view(found, view), _read(view.memory), self.now())
        broken = [each.batch_id for each in view.open if not each.held]
        return [
            *(f"finish the submission of batch {n} that broke off" for n in broken),
            *(sentence(decision) for decision in plan.decisions),
        ]

    # --- what is open -----------------------------------------------------------------------------------------

    def _settle(self, cycle: _Cycle) -> None:
        """Submissions that broke off: adopt what the element has; repeat what it has not; give up what is old."""
        for batch in cycle.view.open:
            if not batch.held and time.monotonic() < cycle.ends_at - HOLD_S:
                self._at(cycle, batch.ce, partial(self._settle_one, cycle, batch), rpcs=2)

    def _settle_one(self, cycle: _Cycle, batch: OpenBatch, element: ComputingElement) -> None:
        found = element.find(batch.tag)
        began = time.monotonic()
        try:
            intended = self.send(calls.take_batch(batch.batch_id, BatchTake(hold_s=HOLD_S)))
        except ConflictError:
            return  # its own submitter was quicker
        # Between the look and the hold its own submitter may have sent them and heard no answer: nobody can any more.
        found = found or element.find(batch.tag)
        if found or (batch.by_factory and batch.age_s < SUBMIT_AGAIN_FOR_S and cycle.queue.is_online):
            before = began + HOLD_S - SUBMIT_LIMIT_S
            sent = submit(self.send, element, intended, before=before, again=bool(found))
            word = "adopted" if found else "sent after all"
            n = len(sent.handles)
            cycle.said.append(f"{n} pilots of batch {batch.batch_id} {word}: its submission had broken off")
            return
        reason = "its submission broke off, and its computing element does not have it"
        record = BatchRecord(state="failed", ce=batch.ce or element.name, reason=reason, fence=intended.fence)
        self.send(calls.record_batch(batch.batch_id, record))
        cycle.said.append(f"batch {batch.batch_id} is given up: {reason}")

    def _keep_credential(self, cycle: _Cycle) -> None:
        """A fresh proxy on every element when half of the old one's time is over, even where nothing is submitted."""
        rules = cycle.queue.factory
        if not rules.credential or self.credential_of is None:
            return
        lifetime = timedelta(seconds=rules.credential_lifetime_s)
        for ce in cycle.queue.ces:
            end = cycle.known(ce).credential_end
            if end is not None and end - self.now() > lifetime / 2:
                continue
            try:
                fresh = self.credential_of(rules.credential, lifetime)
            except AirpandaError as error:
                cycle.said.append(f"the pilots' credential {rules.credential!r} cannot be renewed: {error}")
                return
            self._at(cycle, ce, partial(self._renew, cycle, ce, fresh))

    def _renew(self, cycle: _Cycle, ce: str, fresh: ProxyCredential, element: ComputingElement) -> None:
        if not isinstance(element, Renewable):
            cycle.said.append(f"{ce} takes no credential from here: its site must keep the pilots' proxy fresh")
            return
        end = element.renew(fresh)
        cycle.remember(ce, replace(cycle.known(ce), credential_end=end))
        cycle.said.append(f"the pilots' credential at {ce} is fresh: it ends at {to_wire(end)}")

    def _observe(self, cycle: _Cycle) -> bool:
        """Ask each element for its live pilots, and for those that nobody knows; answer whether anything was news."""
        news = False
        for ce in cycle.queue.ces:
            pilots = [pilot for pilot in cycle.view.pilots if _home(cycle, pilot.ce) == ce and pilot.handle]
            before = cycle.news
            if own := [pilot for pilot in pilots if pilot.ce in cycle.queue.ces]:
                self._at(cycle, ce, partial(self._observe_one, cycle, own))
            if left_behind := [pilot for pilot in pilots if pilot.ce not in cycle.queue.ces]:
                self._at(cycle, ce, partial(self._observe_left_behind, cycle, left_behind))
            news |= cycle.news > before
        strays: dict[str, datetime] = {}
        for ce in cycle.queue.ces:
            self._at(cycle, ce, partial(self._find_strays, cycle, ce, strays))
        cycle.memory = replace(cycle.memory, strays=strays)
        return news

    def _observe_one(self, cycle: _Cycle, pilots: Sequence[LivePilot], element: ComputingElement) -> None:
        for part in parts(pilots, element.limits.max_handles):
            known = {Handle(pilot.handle): pilot for pilot in part}
            seen: list[PilotSeen] = []
            over: dict[Handle, LivePilot] = {}
            for handle, status in element.status(list(known)).items():
                pilot, word = known[handle], ce_state(status.state)
                is_over = status.state.is_final
                if is_over:
                    over[handle] = pilot
                if word != pilot.ce_state or is_over or status.state is PilotJobState.UNKNOWN:
                    seen.append(PilotSeen(pilot_id=pilot.pilot_id, ce_state=word, reason=status.reason[:4000]))
            tell(self.send, cycle.queue.name, seen)
            cycle.news += len(seen)
            self._tidy(element, over)

    def _observe_left_behind(self, cycle: _Cycle, pilots: Sequence[LivePilot], element: ComputingElement) -> None:
        """Pilots of an element that the file has no more: this one may know them, or have no such handles at all."""
        try:
            self._observe_one(cycle, pilots, element)
        except InvalidDescriptionError as error:
            reason = f"its computing element is in the queue's file no more: {error}"[:4000]
            seen = [PilotSeen(pilot_id=pilot.pilot_id, ce_state="unknown", reason=reason) for pilot in pilots]
            tell(self.send, cycle.queue.name, seen)
            cycle.news += len(seen)

    def _tidy(self, element: ComputingElement, over: Mapping[Handle, LivePilot]) -> None:
        """Keep the log of one pilot that never registered, for people; remove what the factory's pilots left.

        Not of a pilot that is heard of, whatever its element says: on some elements that would end it.
        """
        ours = {
            handle: pilot
            for handle, pilot in over.items()
            if pilot.by_factory and (pilot.kind in ("queued", "silent") or pilot.asked_to_end)
        }
        mute = next(((handle, pilot) for handle, pilot in ours.items() if pilot.kind == "queued"), None)
        if mute is not None and (text := log_of(element, mute[0])):
            self.send(calls.keep_pilot_log(mute[1].batch_id, mute[1].pilot_id, PilotLog(text=text)))
        if ours and isinstance(element, Purgeable):
            element.purge(list(ours))

    def _find_strays(self, cycle: _Cycle, ce: str, strays: dict[str, datetime], element: ComputingElement) -> None:
        """Pilots that an element has under this installation's tags, and that are on no record.

        And how long the credential lasts that the element would give to a pilot, where nothing else tells.
        """
        if isinstance(element, BringsCredential) and not cycle.queue.factory.credential:
            cycle.remember(ce, replace(cycle.known(ce), credential_end=element.credential_ends()))
        if not isinstance(element, ListsTags):
            return
        tagged = element.tagged(f"ap-{cycle.view.installation}-")
        known = set(self.send(calls.known_tags(KnownTags(tags=list(tagged)))).tags) if tagged else set()
        for tag in sorted(set(tagged) - known):
            since = cycle.memory.strays.get(tag, self.now())
            if self.now() - since < STRAYS_AFTER:
                strays[tag] = since
                continue
            element.cancel(tagged[tag])
            cycle.said.append(f"cancel {len(tagged[tag])} pilots at {ce}: their tag {tag} is on no record")

    # --- acting -----------------------------------------------------------------------------------------------

    def _act(self, cycle: _Cycle, decision: Decision) -> None:
        match decision:
            case Submit(ce, n, _):
                self._at(cycle, ce, partial(self._submit, cycle, ce, n), kind="submission")
            case Cancel(ce, ids, _):
                self._at(cycle, ce, partial(self._cancel, cycle, frozenset(ids)))
            case _:
                pass

    def _submit(self, cycle: _Cycle, ce: str, n: int, element: ComputingElement) -> None:
        began = time.monotonic()
        if began > cycle.ends_at - HOLD_S:
            cycle.said.append(f"nothing more for {ce}: this cycle took too long; the next one sends")
            return
        n = min(n, element.limits.max_batch)
        key = f"factory/{cycle.fence}/{ce}"
        intent = BatchIntent(
            queue=cycle.queue.name, n_pilots=n, key=key, ce=ce, hold_s=HOLD_S, factory_fence=cycle.fence
        )
        intended = self.send(calls.intend_batch(intent))
        submit(self.send, element, intended, before=began + HOLD_S - SUBMIT_LIMIT_S)
        if cycle.memory.credential.opened:
            cycle.memory = replace(cycle.memory, credential=Breaker())

    def _cancel(self, cycle: _Cycle, ids: frozenset[int], element: ComputingElement) -> None:
        wanted = [pilot for pilot in cycle.view.pilots if pilot.pilot_id in ids]
        for pilots in parts(wanted, element.limits.max_handles):
            # On record first: from then on they get no jobs, even where the element cannot be told.
            asked = [PilotSeen(pilot_id=pilot.pilot_id, asked_to_end=True) for pilot in pilots]
            tell(self.send, cycle.queue.name, asked)
            with_handles = [pilot for pilot in pilots if pilot.handle]
            if own := [Handle(pilot.handle) for pilot in with_handles if pilot.ce in cycle.queue.ces]:
                element.cancel(own)
            if left_behind := [Handle(pilot.handle) for pilot in with_handles if pilot.ce not in cycle.queue.ces]:
                with suppress(InvalidDescriptionError):  # as when they are looked at
                    element.cancel(left_behind)

    def _let_go(self, cycle: _Cycle, error: AirpandaError) -> None:
        """Nobody is to wait until this cycle's hold is over; what it has learned of the elements is kept."""
        cycle.said.append(f"this cycle broke off, and the next one goes on: {error}")
        with suppress(AirpandaError):
            self._end(cycle, ())

    def _end(self, cycle: _Cycle, benches: Sequence[Bench]) -> None:
        self.send(
            calls.factory_end(
                cycle.queue.name,
                FactoryEnd(
                    fence=cycle.fence,
                    memory=_MEMORY.dump_python(cycle.memory, mode="json"),
                    decisions=[text[:4000] for text in cycle.said][:1000],
                    benches=[NodeBench(node=each.node, until=each.until, reason=each.because) for each in benches],
                ),
            )
        )

    # --- elements and their troubles --------------------------------------------------------------------------

    def _at(
        self,
        cycle: _Cycle,
        name: str,
        action: Callable[[ComputingElement], None],
        *,
        rpcs: int = 1,
        kind: CallKind = "question",
    ) -> None:
        """Do something at an element, unless it is left alone; its troubles are remembered, and the cycle goes on."""
        ce = _home(cycle, name)
        known = cycle.known(ce)
        shut = known.breaker.by_calls and known.breaker.is_open(self.now())
        if shut and (kind == "submission" or known.breaker.failing == "question"):
            return
        try:
            known, wait_s = spend(known, rpcs, cycle.queue.factory.rpc_per_minute, self.now())
            cycle.remember(ce, known)
            if wait_s > 0:
                raise ThrottledError("rpc_per_minute is used up", retry_after_s=wait_s)
            if ce not in cycle.elements:
                cycle.elements[ce] = self._connect(cycle.queue.at(ce))
            action(cycle.elements[ce])
            known = cycle.known(ce)
            if kind == "submission":
                known = replace(known, refused="", refused_reason="", refused_until=None)
            cycle.remember(ce, replace(known, breaker=breakers.good_call(known.breaker, self.now(), kind)))
        except ComputingElementError as error:
            self._learn(cycle, ce, error, kind)

    def _connect(self, queue: PandaQueue) -> ComputingElement:
        """One element whose Connection is wrong must not stop the others: that is its own failure."""
        try:
            return self.element_of(queue, self.wrapper)
        except (ConfigurationError, CredentialError) as error:
            raise CEUnavailableError(str(error)) from error

    def _learn(self, cycle: _Cycle, ce: str, error: ComputingElementError, kind: CallKind) -> None:
        """What an element's refusal or failure means for the next cycles."""
        now, known = self.now(), cycle.known(ce)
        cycle.said.append(f"{ce}: {error}")
        if isinstance(error, ThrottledError):
            wait = timedelta(seconds=min(error.retry_after_s or 60.0, LONGEST_PATIENCE_S))
            known = replace(known, busy_until=now + wait, busy_reason=str(error)[:500])
        elif isinstance(error, CECredentialError):
            opened = breakers.refused_credential(cycle.memory.credential, str(error)[:500], now)
            if not cycle.memory.credential.is_open(now):
                cycle.memory = replace(cycle.memory, credential=opened)
        elif isinstance(error, InvalidDescriptionError):
            until = now + breakers.REFUSED_FOR
            reason = str(error)[:500]
            known = replace(known, refused=cycle.queue.fingerprint, refused_reason=reason, refused_until=until)
        else:
            known = replace(known, breaker=breakers.failed_call(known.breaker, str(error)[:500], now, kind))
        cycle.remember(ce, known)


def _home(cycle: _Cycle, ce: str) -> str:
    """An element that the file has no more is looked after by the first one, which may share its site."""
    return ce if ce in cycle.queue.ces else next(iter(cycle.queue.ces))


def to_view(queue: PandaQueue, view: FactoryView) -> View:
    """What the policy looks at, element by element."""
    names = list(queue.ces)
    mine: dict[str, list[LivePilot]] = {name: [] for name in names}
    for pilot in view.pilots:
        mine[pilot.ce if pilot.ce in mine else names[0]].append(pilot)
    batches: dict[str, list[BatchOutcome]] = {name: [] for name in names}
    for row in view.batches:
        outcome = BatchOutcome(row.batch_id, row.pilots, row.registered, row.eaten, row.cancelled)
        batches[row.ce if row.ce in batches else names[0]].append(outcome)
    return View(
        demand=Demand(view.demand.waiting, view.demand.waiting_cores),
        ces=[_ce_view(name, mine[name], batches[name], view.queue_s.get(name)) for name in names],
        nodes=[NodeView(row.node, row.pilots, row.short, row.jobs_done, row.jobs_failed) for row in view.nodes],
        bad_nodes=view.bad_nodes,
    )


def _ce_view(
    name: str, pilots: Sequence[LivePilot], batches: Sequence[BatchOutcome], median_queue_s: float | None
) -> CEView:
    """Pilots that were asked to end are there until they are gone, and are nobody's to count on."""

    def waiting(kind: str) -> list[Waiting]:
        return [Waiting(p.pilot_id, p.age_s, p.unheard_s) for p in pilots if p.kind == kind and not p.asked_to_end]

    leaving = sum(p.asked_to_end and p.kind != "probe" for p in pilots)
    return CEView(
        name=name,
        queued=waiting("queued"),
        idle=len(waiting("idle")),
        busy=len(waiting("busy")) + leaving,
        silent=waiting("silent"),
        probes=waiting("probe"),
        batches=batches,
        median_queue_s=median_queue_s,
    )


def _read(memory: Mapping[str, object]) -> Memory:
    """The memory as it was written; one of another version is begun anew."""
    try:
        return _MEMORY.validate_python(memory)
    except ValidationError:
        log.warning("the factory's memory has another form than this version expects: it begins anew")
        return Memory()
