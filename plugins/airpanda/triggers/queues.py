"""Waits until a PanDA queue is as somebody wants it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airpanda.core.errors import AirpandaError, ServiceError
from airpanda.hooks import calls
from airpanda.hooks.panda import PandaHook
from airpanda.messages import QueueView
from airpanda.triggers.settling import settled

_SLOWEST_POLL_S = 300.0


@dataclass(frozen=True)
class QueueWish:
    """A queue is to be online, with ``at_least_idle`` pilots that ask for work, and at most ``at_most_waiting`` jobs
    that wait (None: any number).
    """

    at_least_idle: int = 0
    at_most_waiting: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 0:
                raise ValueError(f"{name} = {value} must be 0 or more")

    def lacks(self, view: QueueView) -> str:
        """What is not so yet; empty when all is."""
        if view.state != "online":
            return f"queue {view.queue} is {view.state}"
        if view.idle < self.at_least_idle:
            return f"{view.idle} of {self.at_least_idle} pilots of queue {view.queue} ask for work ({describe(view)})"
        if self.at_most_waiting is not None and view.waiting > self.at_most_waiting:
            return f"{view.waiting} jobs wait at queue {view.queue}, more than {self.at_most_waiting}"
        return ""


class PandaQueueTrigger(BaseTrigger):
    """Fires once, with ``{"view": …}`` when the queue is as wished, or ``{"note": sentence}`` when asking has no use.

    The dispatcher's absence is waited out with a growing pause; a refusal (no such queue, revoked token) ends the wait.

    Args:
        panda_queue: the PanDA queue.
        at_least_idle: as in :class:`QueueWish`.
        at_most_waiting: the same.
        poll_s: seconds between two questions.
        panda_conn_id: Airflow Connection of the dispatcher.
    """

    def __init__(
        self,
        *,
        panda_queue: str,
        at_least_idle: int,
        at_most_waiting: int | None,
        poll_s: float = 30.0,
        panda_conn_id: str,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.panda_queue = panda_queue
        self.at_least_idle = at_least_idle
        self.at_most_waiting = at_most_waiting
        self.poll_s = poll_s
        self.panda_conn_id = panda_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, as Airflow stores them."""
        names = ("panda_queue", "at_least_idle", "at_most_waiting", "poll_s", "panda_conn_id")
        return "airpanda.triggers.queues.PandaQueueTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the one event."""
        started = time.monotonic()
        try:
            said: dict[str, Any] = {"view": (await self._wait()).model_dump(mode="json")}
        except AirpandaError as error:
            said = {"note": str(error)}
        await settled(started)
        yield TriggerEvent(said)

    async def _wait(self) -> QueueView:
        hook, wish = PandaHook(self.panda_conn_id), QueueWish(self.at_least_idle, self.at_most_waiting)
        pause_s, last = self.poll_s, ""
        while True:
            try:
                # A client for each question: the token is the Connection's present one, however long this waits.
                view = await hook.asend(calls.queue(self.panda_queue))
            except ServiceError as error:
                if not error.transient:
                    raise
                pause_s = min(pause_s * 2, _SLOWEST_POLL_S)
                self.log.warning("%s Asking again in %.0f s.", error, pause_s)
            else:
                pause_s = self.poll_s
                if not (lacking := wish.lacks(view)):
                    return view
                if lacking != last:
                    self.log.info("%s", lacking)
                    last = lacking
            await asyncio.sleep(pause_s)


def describe(view: QueueView) -> str:
    """One line: ``queued 12, idle 1, busy 8, silent 0; 40 jobs wait``."""
    pilots = ", ".join(f"{kind} {getattr(view, kind)}" for kind in ("queued", "idle", "busy", "silent"))
    return f"{pilots}; {view.waiting} jobs wait"
