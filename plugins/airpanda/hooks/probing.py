"""One pilot for one look at a queue: it shows its node, gets no job, and leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airpanda.computing.elements import (
    ComputingElement,
    ComputingElementError,
    Handle,
    Outcome,
    Purgeable,
    SubmitUncertainError,
)
from airpanda.computing.queues import PandaQueue
from airpanda.core.errors import AirpandaError
from airpanda.hooks import calls
from airpanda.hooks.submission import HOLD_S, SUBMIT_LIMIT_S, Send, because, ce_state, log_of, submit, tell
from airpanda.messages import BatchIntent, BatchRecord, IntendedBatch, PilotProbe, PilotSeen

_POLL_S = 1.0
_LOG_LINES = 15


@dataclass(frozen=True)
class Verdict:
    """How the look went. ``text`` is a sentence for a person; ``log``: the end of the pilot's own log, if it failed."""

    good: bool
    text: str
    probe: dict[str, Any] | None = None
    log: str = ""


@dataclass
class QueueTest:
    """Sends one pilot to a queue.

    Args:
        send: the dispatcher.
        element_of: makes the queue's computing element from its description and the wrapper.
        limit_s: how long to wait for the pilot's word.
        grace_s: how long to wait for its end, after it was asked to end.
    """

    send: Send
    element_of: Callable[[PandaQueue, Path], ComputingElement]
    wrapper: Path
    say: Callable[[str], None]
    limit_s: float = 600.0
    grace_s: float = 90.0

    def run(self, name: str) -> Verdict:
        """Submit, wait, clean up, whatever happens.

        Raises:
            ComputingElementError: the element did not take the pilot, or failed later; it says who must act.
            AirpandaError: the dispatcher refuses or does not answer.
        """
        element = self.element_of(PandaQueue.from_wire(self.send(calls.factory(name)).queue), self.wrapper)
        try:
            began = time.monotonic()
            intent = BatchIntent(queue=name, n_pilots=1, purpose="probe", hold_s=HOLD_S)
            intended = self.send(calls.intend_batch(intent))
            handle = self._submit(element, intended, before=began + HOLD_S - SUBMIT_LIMIT_S)
            try:
                pilot, took_s = intended.pilots[0].pilot_id, time.monotonic() - began
                self.say(f"pilot {pilot} is submitted to {element.name} as {handle} ({took_s:.1f} s)")
                return self._verdict(element, intended, handle)
            finally:
                self._clean_up(element, intended, handle)
        finally:
            element.close()

    def _submit(self, element: ComputingElement, intended: IntendedBatch, *, before: float) -> Handle:
        (ticket,) = intended.pilots
        try:
            return Handle(submit(self.send, element, intended, before=before).handles[ticket.pilot_id])
        except BaseException as error:  # Ctrl-C, too
            if isinstance(error, SubmitUncertainError) or not isinstance(error, ComputingElementError):
                self._give_up(element, intended)
            raise

    def _give_up(self, element: ComputingElement, intended: IntendedBatch) -> None:
        """End what the element may have of a submission that broke off, and put on record that nothing is to come.

        Where the element cannot be asked the batch stays open, and the queue's factory finishes it.
        """
        with suppress(AirpandaError):
            if handles := list(element.find(intended.tag)):
                element.cancel(handles)
            reason = "the test of the queue broke off while it submitted its pilot"
            record = BatchRecord(state="failed", ce=element.name, reason=reason, fence=intended.fence)
            self.send(calls.record_batch(intended.batch_id, record))

    def _verdict(self, element: ComputingElement, intended: IntendedBatch, handle: Handle) -> Verdict:
        pilot_id = intended.pilots[0].pilot_id
        deadline = time.monotonic() + self.limit_s
        said = ""
        while True:
            status = element.status([handle])[handle]
            # Asked after the element: a pilot that has ended by now has said everything that it will say.
            pilot = self.send(calls.pilot_probe(intended.batch_id, pilot_id))
            if pilot.registered_at is not None or pilot.state in ("benched", "finished", "failed"):
                return self._of_its_word(element, handle, pilot)
            if status.state.is_final:
                ended = f"the pilot ended ({status.state.value}{because(status)}) and never reached the dispatcher"
                text = f"{ended}: its log says why; correct the queue file, or ask the site's administrator"
                return Verdict(False, text, log=_lines(log_of(element, handle)))
            if status.state.value != said:
                said = status.state.value
                self.say(f"the computing element says: {said}{because(status)}")
            if time.monotonic() > deadline:
                text = f"no word from the pilot within {self.limit_s:.0f} s; the computing element says {said}"
                return Verdict(False, f"{text}{because(status)}", log=_lines(log_of(element, handle)))
            time.sleep(_POLL_S)

    def _of_its_word(self, element: ComputingElement, handle: Handle, pilot: PilotProbe) -> Verdict:
        if pilot.registered_at is not None:
            return Verdict(True, f"the pilot works on node {pilot.node}: the queue can take jobs", pilot.probe)
        text = f"the pilot on node {pilot.node} refuses to work: {pilot.reason}; the site's administrator must act"
        return Verdict(False, text, pilot.probe, _lines(log_of(element, handle)))

    def _clean_up(self, element: ComputingElement, intended: IntendedBatch, handle: Handle) -> None:
        pilot_id = intended.pilots[0].pilot_id
        deadline = time.monotonic() + self.grace_s
        outcome = element.cancel([handle])[handle]
        while outcome is Outcome.ACCEPTED and time.monotonic() < deadline:
            if element.status([handle])[handle].state.is_final:
                break
            time.sleep(_POLL_S)
        status = element.status([handle])[handle]
        if isinstance(element, Purgeable):
            element.purge([handle])
        seen = PilotSeen(pilot_id=pilot_id, ce_state=ce_state(status.state), asked_to_end=True)
        tell(self.send, intended.queue["queue"]["name"], [seen])
        ended = status.state.is_final or outcome is not Outcome.ACCEPTED
        self.say(f"pilot {pilot_id} is {'gone' if ended else 'asked to end and still there'} ({status.state.value})")


def _lines(text: str) -> str:
    return "\n".join(text.splitlines()[-_LOG_LINES:])
