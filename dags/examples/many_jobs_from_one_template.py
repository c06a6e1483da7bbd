"""One idea: a thousand jobs from one template, of which a hundredth may fail, at any queue that fits."""

from __future__ import annotations

from airflow.sdk import Param, dag

from airpanda.operators.jobs import PandaTaskOperator


@dag(
    schedule=None,
    tags=["airpanda", "example"],
    params={
        "n_jobs": Param(
            1000,
            type="integer",
            minimum=1,
            maximum=100_000,
            title="Jobs",
            description="how many points are scanned, one job each",
        )
    },
    doc_md=__doc__,
)
def many_jobs_from_one_template() -> None:
    """Wire it."""
    PandaTaskOperator(
        task_id="scan",
        template={"job_name": "scan-{n:06d}", "argv": ["sh", "-c", "echo point {n}"], "priority": 500},
        count="{{ params.n_jobs }}",
        success="99%",
        payload_owner="alice",
        panda_queue="*",
    )


many_jobs_from_one_template()
