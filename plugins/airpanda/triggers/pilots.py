"""Waits until enough pilots of a batch have registered, or none can any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airpanda.computing.queues import PandaQueue
from airpanda.core.errors import AirpandaError, NotAuthorisedError, ServiceError
from airpanda.hooks import calls
from airpanda.hooks.computing import element_of, wrapper_path
from airpanda.hooks.panda import PandaHook
from airpanda.hooks.submission import cancel_pilots, observe_pilots
from airpanda.messages import BatchView, TaskInstanceKey
from airpanda.triggers.settling import settled

_SLOWEST_POLL_S = 60.0
LOOK_S = 60.0
"""How often the element itself is asked for pilots that say nothing, where no factory does so."""


class PilotBatchTrigger(BaseTrigger):
    """Fires once, with ``{"batch_id": n, "good": bool, "note": sentence}``.

    The dispatcher's absence is waited out with a growing pause; a refusal ends the wait with the reason. Where no
    factory serves the queue, its element is asked for pilots that say nothing.

    Args:
        batch_id: the pilots that were submitted together.
        panda_queue: their queue.
        wanted: how many must have registered.
        ti: the try on whose behalf they were sent; a kill ends them only while it owns them.
        poll_s: seconds between two questions.
    """

    def __init__(
        self,
        *,
        batch_id: int,
        panda_queue: str,
        wanted: int,
        ti: dict[str, Any],
        poll_s: float = 5.0,
        panda_conn_id: str,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.batch_id = batch_id
        self.panda_queue = panda_queue
        self.wanted = wanted
        self.ti = ti
        self.poll_s = poll_s
        self.panda_conn_id = panda_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, as Airflow stores them."""
        names = ("batch_id", "panda_queue", "wanted", "ti", "poll_s", "panda_conn_id")
        return "airpanda.triggers.pilots.PilotBatchTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the one event."""
        started = time.monotonic()
        try:
            good, note = await self._wait()
        except AirpandaError as error:
            good, note = False, str(error)
        await settled(started)
        yield TriggerEvent({"batch_id": self.batch_id, "good": good, "note": note})

    async def _wait(self) -> tuple[bool, str]:
        hook = PandaHook(self.panda_conn_id)
        pause_s, last, looked = self.poll_s, "", time.monotonic()
        async with AsyncExitStack() as clients:
            client, is_new = await clients.enter_async_context(await hook.aclient()), True
            while True:
                try:
                    view = await hook.asend(calls.batch(self.batch_id), client)
                except NotAuthorisedError:
                    if is_new:
                        raise
                    # The token may have been changed in the Connection since.
                    await clients.aclose()
                    client, is_new = await clients.enter_async_context(await hook.aclient()), True
                    continue
                except ServiceError as error:
                    if not error.transient:
                        raise
                    pause_s = min(pause_s * 2, _SLOWEST_POLL_S)
                    self.log.warning("%s Asking again in %.0f s.", error, pause_s)
                else:
                    pause_s, is_new = self.poll_s, False
                    if (said := describe(view)) != last:
                        self.log.info("batch %d: %s", self.batch_id, said)
                        last = said
                    verdict = judge(view, self.wanted)
                    if verdict is not None:
                        return verdict
                    if time.monotonic() - looked >= LOOK_S:
                        await self._look(hook, view)
                        looked = time.monotonic()
                await asyncio.sleep(pause_s)

    async def _look(self, hook: PandaHook, view: BatchView) -> None:
        """Pilots that ended before they could speak are known by their element alone."""
        try:
            await asyncio.to_thread(observe_pilots, hook.send, element_of, wrapper_path(), view)
        except AirpandaError as error:
            self.log.warning("what became of the pilots cannot be told now: %s", error)

    async def on_kill(self) -> None:
        """A user cleared or marked the waiting task: end its pilots, unless a new try has adopted them."""
        hook = PandaHook(self.panda_conn_id)
        async with await hook.aclient() as client:
            view = await hook.asend(calls.factory(self.panda_queue), client)
        queue, ti = PandaQueue.from_wire(view.queue), TaskInstanceKey.model_validate(self.ti)
        reason = "the waiting Airflow task was cleared or marked"
        # Computing elements are synchronous: an SSH connection must not hold up the triggerer.
        arguments = (hook.send, element_of, wrapper_path(), self.batch_id, queue, reason, ti)
        n = await asyncio.to_thread(cancel_pilots, *arguments)
        self.log.info("%d pilots of batch %d were asked to end", n, self.batch_id)


def judge(view: BatchView, wanted: int) -> tuple[bool, str] | None:
    """Whether the wait is over, and how; None: not yet."""
    registered = sum(pilot.registered_at is not None for pilot in view.pilots)
    if registered >= wanted:
        return True, describe(view)
    if any(pilot.ended_at is None and pilot.state != "benched" for pilot in view.pilots):
        return None
    reasons = sorted({pilot.reason for pilot in view.pilots if pilot.registered_at is None and pilot.reason})
    why = f": {'; '.join(reasons[:3])}" if reasons else ""
    return False, f"all pilots of batch {view.batch_id} have ended, and {registered} of {wanted} ever registered{why}"


def describe(view: BatchView) -> str:
    """One line: ``20 pilots (queued 12, started 8)``."""
    counts: dict[str, int] = {}
    for pilot in view.pilots:
        waiting = pilot.state in ("intended", "submitted")
        word = pilot.ce_state if waiting and pilot.ce_state else pilot.state
        counts[word] = counts.get(word, 0) + 1
    return f"{len(view.pilots)} pilots ({', '.join(f'{word} {n}' for word, n in sorted(counts.items()))})"
