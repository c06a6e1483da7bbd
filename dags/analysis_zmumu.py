"""An analysis of a campaign: the di-muon mass peak, drawn as the analyst herself.

Every published `production_campaign` starts it, as the owner of its form's default; or run it by hand with `inputs`, as
whoever's proxy may be staged. What starts by itself is judged by a function that runs on the grid, too.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import Asset, Param, conf, dag, task

from airpanda.decorators.panda_task import panda_task
from airpanda.operators.jobs import PandaJobOperator
from airpanda.operators.pilots import PilotSubmitOperator
from airpanda.operators.proxies import MyProxyStageOperator

EVENTS = Asset("airpanda://production/zmumu")
OWNER, QUEUE = "{{ params.owner }}", "{{ params.queue }}"


@panda_task(queue=QUEUE, owner=OWNER, walltime_s=600)
def judge(result: Path) -> dict:
    """On the grid, as the analyst: does the fit agree with the Z boson of the Particle Data Group?"""
    import json

    fit = json.loads(result.read_text())
    pull = (fit["mass_gev"] - 91.188) / fit["mass_error_gev"]
    print(f"mass {fit['mass_gev']:.3f} GeV, {pull:+.1f} standard deviations from 91.188 GeV")
    return {"mass_gev": fit["mass_gev"], "pull": pull, "agrees": abs(pull) < 5}


@dag(
    schedule=[EVENTS],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["airpanda", "analysis"],
    params={
        "queue": Param("DEMO", type="string", title="PanDA queue", description="* for any that fits"),
        "owner": Param(
            "alice", type="string", title="Payload owner", description="whose proxy is staged: Connection owner_<name>"
        ),
        "inputs": Param(
            [],
            type="array",
            title="Inputs",
            description='{"lfn": …, "source": …} of each file to read; empty in runs that a campaign starts',
        ),
        "n_pilots": Param(
            1,
            type="integer",
            minimum=0,
            maximum=100,
            title="Pilots to send",
            description="0 where a pilot factory or somebody else sends them",
        ),
    },
    doc_md=__doc__,
    render_template_as_native_obj=True,
)
def analysis_zmumu() -> None:
    """Wire the analysis."""

    @task
    def choose(params: dict | None = None, triggering_asset_events: dict | None = None) -> dict:
        """The script, its arguments and its inputs: given by hand, or of the campaigns that started this run."""
        script = Path(conf.get("airpanda", "include_dir"), "physics", "zmumu_peak.py").read_text()
        events = [event for several in (triggering_asset_events or {}).values() for event in several]
        inputs = params["inputs"] or [file for event in events for file in event.extra.get("inputs", [])]
        if not inputs:
            raise ValueError("this run has no inputs; trigger it with outputs of production_campaign")
        named = [{"lfn": f"in{n}-{file['lfn']}", "source": file["source"]} for n, file in enumerate(inputs)]
        argv = ["python3", "zmumu_peak.py", *(file["lfn"] for file in named)]
        return {"argv": argv, "scripts": {"zmumu_peak.py": script}, "inputs": named}

    job = choose()
    proxy = MyProxyStageOperator(
        task_id="stage_proxy",
        payload_owner=OWNER,
        lifetime=timedelta(hours=12),
        scope="user",
        doc_md="Leaves a proxy of the payload owner in MyProxy, where pilots fetch it for her jobs.",
    )
    peak = PandaJobOperator(
        task_id="peak",
        argv=job["argv"],
        scripts=job["scripts"],
        inputs=job["inputs"],
        outputs=["zmumu.png", "result.json"],
        payload_owner=OWNER,
        credential=proxy.output,
        panda_queue=QUEUE,
        doc_md="One job that draws the events and fits the mass peak.",
    )
    pilots = PilotSubmitOperator(
        task_id="send_pilots",
        panda_queue=QUEUE,
        n_pilots="{{ params.n_pilots }}",
        doc_md="Sends pilots to the queue. They take any job that waits there and fits.",
    )
    proxy >> [peak, pilots]

    @task.short_circuit
    def started_by_a_campaign(triggering_asset_events: dict | None = None) -> bool:
        """Whether nobody looks at the picture right now."""
        return bool(triggering_asset_events)

    @task
    def numbers(outputs: list[dict]) -> dict:
        """The file with the fit's numbers."""
        return next(file for file in outputs if file["lfn"] == "result.json")

    peak >> started_by_a_campaign() >> (result := numbers(peak.output["outputs"]))
    judge(result)


analysis_zmumu()
