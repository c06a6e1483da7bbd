"""Airflow's task context as our messages."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import RetryDecision
from airflow.sdk.definitions.retry_policy import RetryAction

from airpanda.messages import TaskInstanceKey


def task_instance_key(context: Any) -> TaskInstanceKey:
    """The running try: DAG, run, task, map index, try number and the try's UUID."""
    ti = context["ti"]
    return TaskInstanceKey(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        try_number=ti.try_number,
        ti_id=str(ti.id),
    )


def tries_before_clear(context: Any) -> int:
    """How many tries a person has cleared away; 0 before the first clear. A retry by Airflow changes nothing in it.

    Source: ``airflow.models.taskinstance.clear_task_instances`` sets ``max_tries = try_number + retries``.
    """
    ti = context["ti"]
    return max(0, (ti.max_tries or 0) - int(ti.task.retries or 0))


def will_retry(context: Any, task: Any, failure: BaseException) -> timedelta | None:
    """The pause after which Airflow tries again by itself, or None when it does not."""
    ti = context["ti"]
    if ti.try_number > (ti.max_tries or 0):
        return None
    decision = RetryDecision.default()
    if task.retry_policy is not None:
        decision = task.retry_policy.evaluate(failure, ti.try_number, ti.max_tries, context)
    if decision.action is RetryAction.FAIL:
        return None
    pause: timedelta = decision.retry_delay or task.retry_delay
    return pause
