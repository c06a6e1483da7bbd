"""Stop, every five minutes, jobs for which no Airflow task waits any more.

A task that is marked while the triggerer is down, a deleted DAG or run, a worker that died at the wrong moment: its
jobs would go on for nobody. The run's XCom lists what was stopped.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import dag

from airpanda.operators.watchdog import PandaWatchdogOperator


@dag(
    schedule=timedelta(minutes=5),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["airpanda", "operations"],
    doc_md=__doc__,
)
def panda_watchdog() -> None:
    """Wire the watchdog."""
    PandaWatchdogOperator(
        task_id="stop_orphans",
        doc_md="Stops jobs for which no Airflow task waits; its XCom lists them.",
    )


panda_watchdog()
