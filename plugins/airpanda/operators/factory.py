"""The pilot factory as Airflow tasks: which queues there are, and one task for each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator

from airpanda.core.errors import ConflictError
from airpanda.hooks import calls
from airpanda.hooks.computing import element_of, pilots_proxy, wrapper_path
from airpanda.hooks.context import task_instance_key
from airpanda.hooks.factory import Factory
from airpanda.hooks.panda import PandaHook


class FactoryQueuesOperator(BaseOperator):
    """Returns the names of the queues that this client may send pilots to: what the factory is mapped over."""

    ui_color = "#d7ecd9"

    def __init__(self, *, panda_conn_id: str = PandaHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.panda_conn_id = panda_conn_id

    def execute(self, context: Any) -> list[str]:
        """Raises:
        AirpandaError: the dispatcher refuses or does not answer.
        """
        with closing(PandaHook(self.panda_conn_id)) as hook:
            found = hook.send(calls.factories())
        for state in found:
            self.log.info("%s is %s, %d pilots live", state.queue, state.state, state.live_pilots)
        return [state.queue for state in found]


class PilotFactoryOperator(BaseOperator):
    """Runs the pilot factory of one queue: so many cycles, and between them it waits without a worker slot.

    Each cycle asks the computing elements for their pilots, puts in order what is open, keeps the pilots' credential
    fresh, and sends or cancels pilots as ``[factory]`` of the queue file says. The log has every decision with its
    reason; XCom has those of the last cycle. While another factory has the queue, nothing is done.

    Args:
        panda_queue: the PanDA queue (templated).
        cycles: how many.
        pause: between two cycles.
        say_only: say what would be decided, once, and do nothing (templated).
    """

    template_fields: Sequence[str] = ("panda_queue", "say_only")
    ui_color = "#d7ecd9"

    def __init__(
        self,
        *,
        panda_queue: str,
        cycles: int = 1,
        pause: timedelta = timedelta(minutes=1),
        say_only: bool | str = False,
        panda_conn_id: str = PandaHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.panda_queue = panda_queue
        self.cycles = cycles
        self.pause = pause
        self.say_only = say_only
        self.panda_conn_id = panda_conn_id

    def execute(self, context: Any) -> list[str]:
        """Raises:
        AirpandaError: the dispatcher refuses or does not answer; the next run goes on from what is on record.
        """
        return self._cycle(context, self.cycles)

    def next_cycle(self, context: Any, event: Any = None, left: int = 1) -> list[str]:
        """Resume after the pause. Raises as ``execute``."""
        return self._cycle(context, left)

    def _cycle(self, context: Any, left: int) -> list[str]:
        ti = task_instance_key(context)
        holder = f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}"
        say_only = str(self.say_only).lower() == "true"
        with closing(PandaHook(self.panda_conn_id)) as hook:
            factory = Factory(hook.send, element_of, wrapper_path(), holder, credential_of=pilots_proxy)
            try:
                said = factory.dry_run(self.panda_queue) if say_only else factory.cycle(self.panda_queue)
            except ConflictError as error:
                said = [str(error)]
        for sentence in said:
            self.log.info("%s: %s", self.panda_queue, sentence)
        if left > 1 and not say_only:
            self.defer(trigger=TimeDeltaTrigger(self.pause), method_name="next_cycle", kwargs={"left": left - 1})
        return said
