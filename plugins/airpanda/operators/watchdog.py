"""Stop jobs for which no Airflow task waits any more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow.sdk import BaseOperator

from airpanda.core.errors import AirpandaError
from airpanda.hooks import calls
from airpanda.hooks.panda import PandaHook
from airpanda.messages import KillRequest, TaskInstanceKey, TaskView

_ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
_PAGES = 50
_RUNS_AT_ONCE = 100


class PandaWatchdogOperator(BaseOperator):
    """Cancels the open jobs of panda tasks whose Airflow task has ended or is gone; returns what it stopped.

    That happens when a waiting task is marked while the triggerer is down, when a DAG or run is deleted, or when a
    worker dies at the wrong moment. Airflow's own state decides. What a newer try has taken over is left alone, because
    the dispatcher stops only what the try still owns that was looked at. Other clients' panda tasks are not touched,
    nor what a person has re-opened after the Airflow task's end.
    """

    ui_color = "#f7dfcf"

    def __init__(self, *, panda_conn_id: str = PandaHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.panda_conn_id = panda_conn_id

    def execute(self, context: Any) -> list[dict[str, Any]]:
        """Raises:
        AirpandaError: the dispatcher does not list panda tasks, or every kill was refused.
        """
        hook = PandaHook(self.panda_conn_id)
        open_tasks = list(_open_tasks(hook))
        stopped: list[dict[str, Any]] = []
        refusals: list[AirpandaError] = []
        for task, state in orphans(open_tasks, context["ti"].get_task_states):
            reason = f"the Airflow task is {state or 'gone'}: nobody waits for these jobs"
            try:
                hook.send(calls.kill(task.task_id, KillRequest(reason=reason, ti=task.ti)))
            except AirpandaError as error:
                self.log.warning("panda_task=%d cannot be stopped: %s", task.task_id, error)
                refusals.append(error)
                continue
            self.log.warning("panda_task=%d of %s stopped: %s", task.task_id, task.owner, reason)
            stopped.append({"task_id": task.task_id, "owner": task.owner, "state": state})
        self.log.info("%d panda tasks are open, %d were stopped", len(open_tasks), len(stopped))
        if refusals and not stopped:
            raise refusals[0]
        return stopped


def orphans(tasks: Sequence[TaskView], states_of: Any) -> Iterator[tuple[TaskView, str | None]]:
    """Panda tasks whose task instance has ended (its state) or does not exist (None).

    Args:
        states_of: ``get_task_states`` of a running Airflow task.
    """
    by_task: dict[tuple[str, str], list[TaskView]] = defaultdict(list)
    for task in tasks:
        by_task[task.ti.dag_id, task.ti.task_id].append(task)
    for (dag_id, task_id), several in by_task.items():
        for first in range(0, len(several), _RUNS_AT_ONCE):
            some = several[first : first + _RUNS_AT_ONCE]
            runs = sorted({task.ti.run_id for task in some})
            states: Mapping[str, Mapping[str, str | None]] = states_of(dag_id=dag_id, task_ids=[task_id], run_ids=runs)
            for task in some:
                there = states.get(task.ti.run_id, {})
                name = _name(task.ti)
                if name not in there:
                    yield task, None
                elif there[name] in _ENDED:
                    yield task, there[name]


def _name(ti: TaskInstanceKey) -> str:
    """As Airflow's execution API names a task instance."""
    return ti.task_id if ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}"


def _open_tasks(hook: PandaHook) -> Iterator[TaskView]:
    before: int | None = None
    for _ in range(_PAGES):
        page = hook.send(calls.my_open_tasks(before))
        yield from page.tasks
        if page.before is None:
            return
        before = page.before
