"""One idea: nobody here has Alice's key. She stages a proxy from her terminal; this waits for it and runs as her.

Alice runs `python -m airpanda proxy stage --scope user`, once for as many runs as the proxy lasts.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airpanda.operators.jobs import PandaJobOperator
from airpanda.sensors.proxies import ProxyLifetimeSensor


@dag(schedule=None, tags=["airpanda", "example"], doc_md=__doc__)
def proxy_staged_by_its_owner() -> None:
    """Wire it; pilots are sent by another DAG."""
    proxy = ProxyLifetimeSensor(task_id="proxy", payload_owner="alice", min_lifetime=timedelta(hours=6))
    PandaJobOperator(
        task_id="hello",
        payload_owner="alice",
        credential=proxy.output,
        panda_queue="DEMO",
        argv=["id"],
    )


proxy_staged_by_its_owner()
