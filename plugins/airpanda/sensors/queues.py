"""Wait until a PanDA queue takes work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue, conf
from airflow.sdk.exceptions import AirflowFailException

from airpanda.hooks import calls
from airpanda.hooks.panda import PandaHook
from airpanda.messages import QueueView
from airpanda.sensors.numbers import number_of, pause_of
from airpanda.triggers.queues import PandaQueueTrigger, QueueWish, describe


class PandaQueueSensor(BaseSensorOperator):
    """Succeeds when a queue is online, has enough pilots that ask for work, and not too many jobs that wait for them.

    XCom holds what was seen: ``{"queue", "state", "waiting", "queued", "idle", "busy", "silent"}``, jobs that wait and
    pilots by what they do. Waiting takes no worker slot, in neither way.

    Args:
        panda_queue: the PanDA queue (templated).
        at_least_idle: how many of its pilots must ask for work; 0: being online is enough (templated).
        at_most_waiting: how many jobs may wait there; any number by default (templated).
        deferrable: wait in the triggerer, which asks each ``poke_interval`` seconds (at least one), instead of being
            rescheduled; Airflow's ``[operators] default_deferrable`` by default.
    """

    template_fields: Sequence[str] = ("panda_queue", "at_least_idle", "at_most_waiting")
    ui_color = "#e2f0e4"

    def __init__(
        self,
        *,
        panda_queue: str,
        at_least_idle: Any = 0,
        at_most_waiting: Any = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        panda_conn_id: str = PandaHook.default_conn_name,
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(mode=mode, **kwargs)
        self.panda_queue = panda_queue
        self.at_least_idle = at_least_idle
        self.at_most_waiting = at_most_waiting
        self.deferrable = deferrable
        self.panda_conn_id = panda_conn_id

    def execute(self, context: Any) -> Any:
        """Raises:
        AirflowFailException: the queue has no name, or a number is none.
        AirpandaError: the dispatcher refuses or does not answer.
        """
        wish = self._wish()
        if not self.deferrable:
            return super().execute(context)
        seen = self._look()
        if not wish.lacks(seen):
            return seen.model_dump(mode="json")
        self.defer(
            trigger=PandaQueueTrigger(
                panda_queue=self.panda_queue,
                at_least_idle=wish.at_least_idle,
                at_most_waiting=wish.at_most_waiting,
                poll_s=pause_of(self),
                panda_conn_id=self.panda_conn_id,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )
        raise AssertionError("unreachable: defer raises")

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Resume. Raises AirflowFailException with the dispatcher's refusal."""
        if "note" in event:
            raise AirflowFailException(f"queue {self.panda_queue} could not be followed: {event['note']}")
        seen = QueueView.model_validate(event["view"])
        self.log.info("queue %s is online: %s", seen.queue, describe(seen))
        return seen.model_dump(mode="json")

    def poke(self, context: Any) -> PokeReturnValue:
        """Raises:
        AirpandaError: the dispatcher refuses or does not answer.
        """
        seen = self._look()
        lacking = self._wish().lacks(seen)
        if lacking:
            self.log.info("%s", lacking)
        return PokeReturnValue(is_done=not lacking, xcom_value=seen.model_dump(mode="json"))

    def _look(self) -> QueueView:
        if not isinstance(self.panda_queue, str) or self.panda_queue.strip() in ("", "None"):
            says = f"names no queue, but is {str(self.panda_queue)[:60]!r} after rendering"
            raise AirflowFailException(f"task {self.task_id}: panda_queue {says}; correct the DAG")
        return PandaHook(self.panda_conn_id).send(calls.queue(self.panda_queue))

    def _wish(self) -> QueueWish:
        most = None if self.at_most_waiting is None else number_of(self, "at_most_waiting")
        return QueueWish(number_of(self, "at_least_idle"), most)
