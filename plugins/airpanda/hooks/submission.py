"""Sending pilots so that each is sent once: intent, submission, record. Any step may be the last; a repeat goes on.

The intent is on record before the computing element hears of it, under a tag that finds it again. A repeat with the
same key gets the same pilots, and the element adopts what it has under the tag. Who submits holds the batch for longer
than one submission may take, so that of two only one is at it; whoever is late does not begin.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import TypeAdapter

from airpanda.computing.elements import (
    ComputingElement,
    ComputingElementError,
    Handle,
    HasOutput,
    NotFoundAtCEError,
    Outcome,
    PilotBatch,
    PilotJobState,
    Status,
    SubmitUncertainError,
)
from airpanda.computing.queues import PandaQueue
from airpanda.core.clock import utcnow
from airpanda.core.errors import ConflictError, ServiceError
from airpanda.core.secret import Secret
from airpanda.hooks import calls
from airpanda.hooks.calls import Call
from airpanda.messages import (
    BatchCancel,
    BatchIntent,
    BatchRecord,
    BatchView,
    CeState,
    FactoryState,
    IntendedBatch,
    PilotSeen,
    PilotsSeen,
    PilotView,
    TaskInstanceKey,
)

R = TypeVar("R")
T = TypeVar("T")
ElementOf = Callable[[PandaQueue, Path], ComputingElement]
SUBMIT_LIMIT_S = 150.0
"""No submission begins that could outlast the hold: elements bound one call to 120 s."""
HOLD_S = 180
REPORTS_AT_ONCE = 200
"""In one call to the dispatcher, which takes 1 MiB: each may carry a reason of 4000 characters."""
FACTORY_IS_ALIVE = timedelta(minutes=3)
"""So long after its last cycle a queue's factory is taken to be at work."""
_ASK_AGAIN_S = 5.0
_CE_STATE: TypeAdapter[CeState] = TypeAdapter(CeState)
log = logging.getLogger(__name__)


class Send(Protocol):
    """Sends one call to the dispatcher, as ``PandaHook.send``."""

    def __call__(self, call: Call[R]) -> R: ...


@dataclass(frozen=True)
class Sent:
    """Pilots on record and at their element. ``handles`` by PilotID."""

    batch_id: int
    tag: str
    handles: Mapping[int, str]


def send_pilots(
    send: Send,
    element_of: ElementOf,
    wrapper: Path,
    intent: BatchIntent,
    *,
    on_intent: Callable[[int], None] = lambda _: None,
    limit_s: float = SUBMIT_LIMIT_S,
) -> Sent:
    """Send the pilots of one intent, or finish what an earlier call with its key has begun.

    Where another call with this key may still be at it, wait until it cannot be any more. ``on_intent`` is told the
    batch before its element hears of it.

    Raises:
        ComputingElementError: the element failed or refused; that is on record, and a repeat is safe.
        AirpandaError: the dispatcher refuses or does not answer; a repeat is safe.
    """
    began, intended = _intend(send, intent)
    on_intent(intended.batch_id)
    if intended.state == "submitted":
        return _known(send, intended.batch_id)
    element = element_of(PandaQueue.from_wire(intended.queue).at(intended.ce), wrapper)
    try:
        return submit(send, element, intended, before=began + intent.hold_s - limit_s, again=intended.fence > 1)
    finally:
        element.close()


def submit(
    send: Send, element: ComputingElement, intended: IntendedBatch, *, before: float, again: bool = False
) -> Sent:
    """Submit a batch that this caller holds, and record what came of it. Raises as ``send_pilots``.

    Args:
        before: monotonic time after which the submission must not begin.
        again: the element may have them from an earlier call. Then its error, be it a clear one, says nothing of those,
            and they are not put on record as failed.
    """
    if time.monotonic() > before:
        raise ServiceError(f"batch {intended.batch_id} cannot be held for long enough to submit it: repeat the task")
    tokens = {pilot.pilot_id: Secret(pilot.token.get_secret_value()) for pilot in intended.pilots}
    ce = intended.ce or element.name
    try:
        handles = element.submit(PilotBatch(intended.tag, tokens)).handles
    except ComputingElementError as error:
        send(calls.record_batch(intended.batch_id, failed_submission(ce, error, intended.fence, again=again)))
        raise
    told = {pilot_id: str(handle) for pilot_id, handle in handles.items()}
    record = BatchRecord(state="submitted", ce=ce, handles=told, fence=intended.fence)
    send(calls.record_batch(intended.batch_id, record))
    return Sent(intended.batch_id, intended.tag, told)


def cancel_pilots(
    send: Send,
    element_of: ElementOf,
    wrapper: Path,
    batch_id: int,
    queue: PandaQueue,
    reason: str,
    ti: TaskInstanceKey | None = None,
) -> int:
    """End a batch's live pilots, by the dispatcher and by their element; answer how many.

    With ``ti`` nothing is done where another try of the task has the batch. A submission that broke off is looked for
    by its tag. A repeat is no error. Raises as ``send_pilots``.
    """
    view = send(calls.cancel_batch(batch_id, BatchCancel(reason=reason, ti=ti)))
    live = [pilot for pilot in view.pilots if pilot.ended_at is None]
    if not live:
        return 0
    element = element_of(queue.at(view.ce if view.ce in queue.ces else ""), wrapper)
    try:
        handles = [Handle(pilot.ce_job_id) for pilot in live if pilot.ce_job_id]
        if len(handles) < len(live):
            handles = list(dict.fromkeys([*handles, *element.find(view.tag)]))
        outcomes = element.cancel(handles) if handles else {}
    finally:
        element.close()
    tell(send, view.queue, [_asked(pilot, outcomes) for pilot in live])
    return len(handles)


def observe_pilots(send: Send, element_of: ElementOf, wrapper: Path, view: BatchView) -> None:
    """Put on record what its element says of a batch's pilots that have not been heard of; the factory does so, too.

    Nothing is done where the queue's factory has lately been at it. A repeat is no error. Raises as ``send_pilots``.
    """
    silent = {Handle(p.ce_job_id): p for p in view.pilots if p.registered_at is None and p.ended_at is None}
    silent.pop(Handle(""), None)
    if not silent or _has_a_factory(send(calls.factories()), view.queue):
        return
    queue = PandaQueue.from_wire(send(calls.factory(view.queue)).queue)
    element = element_of(queue.at(view.ce if view.ce in queue.ces else ""), wrapper)
    seen: list[PilotSeen] = []
    try:
        for handles in parts(list(silent), element.limits.max_handles):
            for handle, status in element.status(handles).items():
                word = ce_state(status.state)
                seen.append(PilotSeen(pilot_id=silent[handle].pilot_id, ce_state=word, reason=status.reason[:4000]))
    finally:
        element.close()
    tell(send, view.queue, seen)


def tell(send: Send, queue: str, seen: Sequence[PilotSeen]) -> None:
    """Put on record what was seen of a queue's pilots, in as many calls as it takes. A repeat is no error."""
    for part in parts(seen, REPORTS_AT_ONCE):
        send(calls.observed(PilotsSeen(queue=queue, pilots=list(part))))


def parts(items: Sequence[T], at_once: int) -> Iterator[Sequence[T]]:
    """The items in their order, at most so many at a time."""
    return (items[start : start + at_once] for start in range(0, len(items), at_once))


def _has_a_factory(states: list[FactoryState], queue: str) -> bool:
    """Whether the queue's factory looks at its pilots: once a minute, as it is shipped."""
    cycled_at = next((state.cycled_at for state in states if state.queue == queue), None)
    return cycled_at is not None and utcnow() - cycled_at < FACTORY_IS_ALIVE


def failed_submission(ce: str, error: ComputingElementError, fence: int, *, again: bool = False) -> BatchRecord:
    """What to record where a submission raised this: whether the pilots may exist all the same."""
    uncertain = again or isinstance(error, SubmitUncertainError)
    return BatchRecord(state="uncertain" if uncertain else "failed", ce=ce, reason=str(error)[:4000], fence=fence)


def log_of(element: ComputingElement, handle: Handle, *, tail_bytes: int = 16384) -> str:
    """The end of the pilot's own log, where the element can show it; else ""."""
    if isinstance(element, HasOutput):
        with suppress(NotFoundAtCEError):
            return element.fetch(handle, tail_bytes=tail_bytes).decode("utf-8", "replace")
    return ""


def ce_state(state: PilotJobState) -> CeState:
    """An element's word for the record."""
    return _CE_STATE.validate_python(state.value)


def because(status: Status) -> str:
    """The reason of a status, to follow its state in a sentence."""
    return f": {status.reason}" if status.reason else ""


def _intend(send: Send, intent: BatchIntent) -> tuple[float, IntendedBatch]:
    """The batch, and the monotonic time from which on it is surely held."""
    give_up = time.monotonic() + intent.hold_s + 2 * _ASK_AGAIN_S
    while True:
        began = time.monotonic()
        try:
            return began, send(calls.intend_batch(intent))
        except ConflictError as error:
            if not intent.key or intent.factory_fence or time.monotonic() > give_up:
                raise
            log.info("%s", error)
            time.sleep(_ASK_AGAIN_S)


def _known(send: Send, batch_id: int) -> Sent:
    view: BatchView = send(calls.batch(batch_id))
    return Sent(batch_id, view.tag, {pilot.pilot_id: pilot.ce_job_id for pilot in view.pilots if pilot.ce_job_id})


def _asked(pilot: PilotView, outcomes: Mapping[Handle, Outcome]) -> PilotSeen:
    outcome = outcomes.get(Handle(pilot.ce_job_id))
    gone = outcome is Outcome.NOT_FOUND
    return PilotSeen(pilot_id=pilot.pilot_id, ce_state="unknown" if gone else "", asked_to_end=True)
