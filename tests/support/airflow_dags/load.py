"""No-op payloads in bulk, the two ways: as jobs of one panda task, and as mapped tasks of Airflow's own."""

from __future__ import annotations

from airflow.sdk import Param, dag, task

from airpanda.operators.jobs import PandaTaskOperator


@dag(schedule=None, params={"n": Param(1, type="integer")}, doc_md=__doc__)
def load_panda() -> None:
    """Wire it."""
    PandaTaskOperator(
        task_id="work",
        template={"job_name": "noop-{n}", "argv": ["true"]},
        count="{{ params.n }}",
        payload_owner="alice",
        panda_queue="DEMO",
    )


@dag(schedule=None, params={"n": Param(1, type="integer")}, doc_md=__doc__)
def load_mapped() -> None:
    """Wire it."""

    @task
    def numbers(params: dict | None = None) -> list[int]:
        return list(range(params["n"]))

    @task
    def work(n: int) -> None:
        return None

    work.expand(n=numbers())


load_panda()
load_mapped()
