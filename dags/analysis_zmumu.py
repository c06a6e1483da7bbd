"""An analysis of the latest campaign: the di-muon mass peak, drawn as the analyst herself.

Run it with ``owner`` set to whoever's proxy may be staged; the inputs are the outputs of ``production_campaign``.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import Param, conf, dag, task

from airpanda.operators.jobs import PandaJobOperator
from airpanda.operators.pilots import PilotSubmitOperator
from airpanda.operators.proxies import MyProxyStageOperator


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["airpanda", "analysis"],
    params={
        "queue": Param("DEMO", type="string", title="PanDA queue"),
        "owner": Param("alice", type="string", title="Payload owner"),
        "inputs": Param([], type="array", title="Inputs", description='{"lfn", "source"} of each file to read'),
        "n_pilots": Param(1, type="integer", minimum=0, maximum=100, title="Pilots to send"),
    },
    doc_md=__doc__,
    render_template_as_native_obj=True,
)
def analysis_zmumu() -> None:
    """Wire the analysis."""

    @task
    def choose(params: dict | None = None) -> dict:
        """The script, its arguments and its inputs."""
        script = Path(conf.get("airpanda", "include_dir"), "physics", "zmumu_peak.py").read_text()
        names = [item["lfn"] for item in params["inputs"]]
        if not names:
            raise ValueError("this run has no inputs; trigger it with outputs of production_campaign")
        return {"argv": ["python3", "zmumu_peak.py", *names], "scripts": {"zmumu_peak.py": script}}

    job = choose()
    proxy = MyProxyStageOperator(
        task_id="stage_proxy", payload_owner="{{ params.owner }}", lifetime=timedelta(hours=12)
    )
    peak = PandaJobOperator(
        task_id="peak",
        argv=job["argv"],
        scripts=job["scripts"],
        inputs="{{ params.inputs }}",
        outputs=["zmumu.png", "result.json"],
        payload_owner="{{ params.owner }}",
        credential=proxy.output,
        panda_queue="{{ params.queue }}",
    )
    pilots = PilotSubmitOperator(
        task_id="send_pilots", panda_queue="{{ params.queue }}", n_pilots="{{ params.n_pilots }}"
    )
    proxy >> [peak, pilots]


analysis_zmumu()
