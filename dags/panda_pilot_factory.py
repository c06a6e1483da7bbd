"""The pilot factory: sends pilots to each queue as its waiting jobs and `[factory]` in its file demand.

One task for each queue looks once a minute and waits in between without a worker slot; its log says every decision with
its reason. Queues without `enabled = true` get no pilots, but what is open there is put in order and the pilots'
credential is kept fresh. Start it with `dry_run` to read what it would do.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import Param, dag

from airpanda.operators.factory import FactoryQueuesOperator, PilotFactoryOperator


@dag(
    schedule=timedelta(minutes=10),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    # Neither a worker that dies nor an absent api-server is to leave the queues alone until the next run.
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    tags=["airpanda", "operations"],
    params={
        "dry_run": Param(
            False,
            type="boolean",
            title="Only say what would be done",
            description="no pilot is sent or ended; each decision and its reason is in the log of the step factory",
        )
    },
    doc_md=__doc__,
)
def panda_pilot_factory() -> None:
    """Wire one factory for each queue."""
    queues = FactoryQueuesOperator(
        task_id="queues",
        doc_md="Lists the queues of `include/queues/`.",
    )
    PilotFactoryOperator.partial(
        task_id="factory",
        cycles=9,
        pause=timedelta(minutes=1),
        say_only="{{ params.dry_run }}",
        doc_md="Sends and ends pilots of one queue; its log says every decision with its reason.",
    ).expand(panda_queue=queues.output)


panda_pilot_factory()
