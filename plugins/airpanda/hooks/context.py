"""Airflow's task context as our messages."""

from __future__ import annotations

from typing import Any

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
