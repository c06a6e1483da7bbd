"""A queue that is waited for in both ways."""

from __future__ import annotations

from airflow.sdk import dag

from airpanda.sensors.queues import PandaQueueSensor


@dag(schedule=None, doc_md=__doc__)
def queue_sensors() -> None:
    for way in ("deferred", "rescheduled"):
        PandaQueueSensor(
            task_id=way,
            panda_queue="{{ dag_run.conf['queue'] }}",
            at_most_waiting="{{ dag_run.conf['at_most_waiting'] }}",
            deferrable=way == "deferred",
            poke_interval=1,
            timeout=300,
        )


queue_sensors()
