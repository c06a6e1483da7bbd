"""For the tests of the demonstration: any one payload as Alice."""

from __future__ import annotations

from airflow.sdk import Param, dag

from airpanda.operators.jobs import PandaJobOperator
from airpanda.operators.pilots import PilotSubmitOperator
from airpanda.operators.proxies import MyProxyStageOperator


@dag(
    schedule=None,
    params={
        "argv": Param(["true"], type="array"),
        "scripts": Param({}, type="object"),
        "outputs": Param([], type="array"),
    },
    render_template_as_native_obj=True,
)
def as_alice() -> None:
    """Wire it."""
    proxy = MyProxyStageOperator(task_id="stage_proxy", payload_owner="alice")
    job = PandaJobOperator(
        task_id="job",
        argv="{{ params.argv }}",
        scripts="{{ params.scripts }}",
        outputs="{{ params.outputs }}",
        payload_owner="alice",
        credential=proxy.output,
        panda_queue="DEMO",
    )
    pilots = PilotSubmitOperator(task_id="send_pilots", panda_queue="DEMO", n_pilots=1)
    proxy >> [job, pilots]


as_alice()
