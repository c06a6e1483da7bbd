"""Waits until every job of a panda task is final."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airpanda.core.errors import AirpandaError, ServiceError
from airpanda.hooks import calls
from airpanda.hooks.board import board_of
from airpanda.hooks.panda import PandaHook
from airpanda.messages import KillRequest, TaskInstanceKey, TaskProgress
from airpanda.triggers.settling import settled


class PandaTaskTrigger(BaseTrigger):
    """Waits for one panda task's counts and fires once, when it is done or can no longer be asked for.

    The event is ``{"panda_task_id": n, "done": bool, "note": sentence, "returns": n}``. The dispatcher's absence is
    waited out with a growing pause; a refusal (unknown task, revoked token) ends the wait with the reason. All triggers
    of a process ask together, in one request.

    Args:
        panda_task_id: the panda task.
        ti: the task instance on whose behalf the jobs run; only what it still owns is cancelled by a kill. None: of who
            only watches, and whose kill is nothing to the jobs.
        poll_s: seconds between two questions.
        panda_conn_id: Airflow Connection of the dispatcher.
        returns: how often the resumed task has gone back to waiting.
    """

    def __init__(
        self,
        *,
        panda_task_id: int,
        ti: dict[str, Any] | None,
        poll_s: float = 1.0,
        panda_conn_id: str,
        returns: int = 0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.panda_task_id = panda_task_id
        self.ti = ti
        self.poll_s = poll_s
        self.panda_conn_id = panda_conn_id
        self.returns = returns

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, as Airflow stores them."""
        return (
            "airpanda.triggers.panda_task.PandaTaskTrigger",
            {
                "panda_task_id": self.panda_task_id,
                "ti": self.ti,
                "poll_s": self.poll_s,
                "panda_conn_id": self.panda_conn_id,
                "returns": self.returns,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the one event."""
        started = time.monotonic()
        try:
            progress = await self._wait()
            said = {"done": progress.done, "note": progress.note}
        except AirpandaError as error:
            said = {"done": False, "note": str(error)}
        await settled(started)
        yield TriggerEvent({"panda_task_id": self.panda_task_id, **said, "returns": self.returns})

    async def _wait(self) -> TaskProgress:
        last: TaskProgress | None = None
        async with board_of(self.panda_conn_id) as board:
            while True:
                try:
                    progress = await board.progress(self.panda_task_id, poll_s=self.poll_s)
                except ServiceError as error:
                    if not error.transient:
                        raise
                    self.log.warning("%s Asking again in %.0f s.", error, board.pause_s)
                    continue
                if progress != last:
                    self.log.info("panda_task=%d %s", self.panda_task_id, describe(progress))
                    last = progress
                if progress.done:
                    return progress

    async def on_kill(self) -> None:
        """A user cleared or marked the waiting task: cancel what this try still owns, and nothing else."""
        if self.ti is None:
            return
        request = KillRequest(
            reason="the waiting Airflow task was cleared or marked", ti=TaskInstanceKey.model_validate(self.ti)
        )
        progress = await PandaHook(self.panda_conn_id).asend(calls.kill(self.panda_task_id, request))
        self.log.info("panda_task=%d after the kill: %s", self.panda_task_id, describe(progress))


def describe(progress: TaskProgress) -> str:
    """One line: ``12 of 20 jobs final (finished 12, running 2, activated 6), 1 suspected: its pilot is silent``."""
    final = sum(n for status, n in progress.counts.items() if status.is_final)
    parts = ", ".join(f"{status.value} {n}" for status, n in progress.counts.items() if n)
    whose = "its pilot is" if progress.suspected == 1 else "their pilots are"
    suspected = f", {progress.suspected} suspected: {whose} silent" if progress.suspected else ""
    return f"{final} of {progress.total} jobs final ({parts}){suspected}"
