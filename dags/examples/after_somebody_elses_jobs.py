"""One idea: wait for the jobs of a panda task that somebody else has submitted, and go on when enough have finished."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, task

from airpanda.sensors.jobs import PandaTaskSensor


@dag(
    schedule=None,
    tags=["airpanda", "example"],
    doc_md=__doc__,
    params={
        "panda_task_id": Param(
            1,
            type="integer",
            minimum=1,
            title="Panda task",
            description="its number, from the other task's log",
        ),
        "at_least": Param(
            1, type="integer", minimum=1, title="Finished jobs", description="how many jobs must have finished"
        ),
    },
)
def after_somebody_elses_jobs() -> None:
    """Wire it."""
    theirs = PandaTaskSensor(
        task_id="theirs", panda_task_id="{{ params.panda_task_id }}", at_least="{{ params.at_least }}"
    )

    @task
    def tell(counts: dict[str, Any]) -> None:
        print(f"{counts.get('finished', 0)} jobs have finished, of {sum(counts.values())}")

    tell(theirs.output)


after_somebody_elses_jobs()
