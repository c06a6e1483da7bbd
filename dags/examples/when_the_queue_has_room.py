"""One idea: wait, without a worker slot, until a queue is online and not too full; then send jobs there."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airpanda.operators.jobs import PandaTaskOperator
from airpanda.sensors.queues import PandaQueueSensor


@dag(schedule=None, tags=["airpanda", "example"], doc_md=__doc__)
def when_the_queue_has_room() -> None:
    """Wire it."""
    room = PandaQueueSensor(
        task_id="room",
        panda_queue="DEMO",
        at_most_waiting=100,
        deferrable=True,
        poke_interval=30,
        timeout=timedelta(hours=12),
    )
    jobs = PandaTaskOperator(
        task_id="jobs",
        payload_owner="alice",
        panda_queue="DEMO",
        template={"job_name": "date-{n}", "argv": ["date"]},
        count=20,
    )
    room >> jobs


when_the_queue_has_room()
