"""A production campaign: Z → µµ events by Pythia 8, as the production robot.

evgen (one job per seed) → merge → validation picture → the merged file as an asset, which starts `analysis_zmumu`.

Trigger it from its form; or give it a schedule ([airpanda] campaign_schedule), so that each period has a run of its
own, with seeds of its own, and past periods can be backfilled from the web UI. Clearing a failed task runs again only
the jobs that are not finished.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, Metadata, Param, conf, dag, task

from airpanda.operators.jobs import PandaJobOperator, PandaTaskOperator
from airpanda.operators.pilots import PilotSubmitOperator
from airpanda.operators.proxies import MyProxyStageOperator

EVENTS = Asset("airpanda://production/zmumu")
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
OWNER, QUEUE = "{{ params.owner }}", "{{ params.queue }}"


@dag(
    schedule=conf.get("airpanda", "campaign_schedule", fallback="") or None,
    start_date=FIRST,
    catchup=False,
    max_active_runs=3,
    tags=["airpanda", "production"],
    params={
        "queue": Param("DEMO", type="string", title="PanDA queue", description="* for any that fits"),
        "owner": Param(
            "robot", type="string", title="Payload owner", description="whose proxy is staged: Connection owner_<name>"
        ),
        "card": Param(
            "zmumu", type="string", enum=["zmumu"], title="Generator card", description="the process that is generated"
        ),
        "n_jobs": Param(
            20,
            type="integer",
            minimum=1,
            maximum=10_000,
            title="Jobs",
            description="one seed each; together they are the panda task of the step evgen",
        ),
        "events_per_job": Param(
            500,
            type="integer",
            minimum=1,
            maximum=1_000_000,
            title="Events per job",
            description="a job of 500 takes some seconds",
        ),
        "first_seed": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            maximum=800_000_000,
            title="Seed of the first job",
            description="empty: of the hour in which the period begins, so that no two periods have the same events",
        ),
        "priority": Param(
            1000,
            type="integer",
            minimum=-10_000,
            maximum=10_000,
            title="Priority",
            description="among the jobs of the same owner; the highest goes first",
        ),
        "success": Param("all", type="string", title="Jobs that must finish", description='"all", "95%" or a number'),
        "validate": Param(
            True,
            type="boolean",
            title="Merge, draw and publish",
            description="publishing starts analysis_zmumu; off: the run ends with the generated files",
        ),
        "n_pilots": Param(
            2,
            type="integer",
            minimum=0,
            maximum=1000,
            title="Pilots to send",
            description="0 where a pilot factory or somebody else sends them",
        ),
    },
    doc_md=__doc__,
    render_template_as_native_obj=True,
)
def production_campaign() -> None:
    """Wire the campaign."""

    @task
    def plan(params: dict | None = None, data_interval_start: datetime | None = None, dag_run: Any = None) -> dict:
        """The seeds and what every job is to do."""
        # A run that somebody triggers without a logical date has no period: it begins when it is made.
        first = params["first_seed"] or seed_of(data_interval_start or dag_run.run_after)
        seeds = list(range(first, first + params["n_jobs"]))
        script = f"evgen_{params['card']}.py"
        return {"seeds": seeds, "scripts": {script: physics(script)}}

    planned = plan()
    proxy = MyProxyStageOperator(
        task_id="stage_proxy",
        payload_owner=OWNER,
        lifetime=timedelta(days=1),
        scope="user",
        panda_queues=["*"],
        doc_md="Leaves a proxy of the payload owner in MyProxy, where pilots fetch it for her jobs.",
    )
    evgen = PandaTaskOperator(
        task_id="evgen",
        template={
            "job_name": "evgen-{item}",
            "argv": ["python3", "evgen_{{ params.card }}.py", "--events", "{{ params.events_per_job }}"]
            + ["--seed", "{item}", "--output", "zmumu-{item}.npz"],
            "outputs": [{"lfn": "zmumu-{item}.npz", "access": "vo"}],
            "walltime_s": 1800,
            "priority": "{{ params.priority }}",
        },
        over=planned["seeds"],
        scripts=planned["scripts"],
        payload_owner=OWNER,
        credential=proxy.output,
        panda_queue=QUEUE,
        success="{{ params.success }}",
        doc_md="One job per seed. Clear it when some have failed: only what is not finished runs again.",
    )
    pilots = PilotSubmitOperator(
        task_id="send_pilots",
        panda_queue=QUEUE,
        n_pilots="{{ params.n_pilots }}",
        doc_md="Sends pilots to the queue. They take any job that waits there and fits.",
    )
    proxy >> [evgen, pilots]

    @task.short_circuit
    def wanted(params: dict | None = None) -> bool:
        """Whether the campaign is to be merged, drawn and published."""
        return bool(params["validate"])

    @task
    def merging(outputs: list[dict]) -> dict:
        """The job that merges what has finished."""
        inputs = [{"lfn": file["lfn"], "source": file["source"]} for file in outputs]
        names = [file["lfn"] for file in inputs]
        return {
            "argv": ["python3", "merge_zmumu.py", "--output", "zmumu.npz", *names],
            "inputs": inputs,
            "merge": {"merge_zmumu.py": physics("merge_zmumu.py")},
            "draw": {"zmumu_peak.py": physics("zmumu_peak.py")},
        }

    job = merging(evgen.output["outputs"])
    merge = PandaJobOperator(
        task_id="merge",
        argv=job["argv"],
        scripts=job["merge"],
        inputs=job["inputs"],
        outputs=[{"lfn": "zmumu.npz", "access": "vo"}],
        payload_owner=OWNER,
        credential=proxy.output,
        panda_queue=QUEUE,
        doc_md="One job that joins the files of all that have finished.",
    )
    picture = PandaJobOperator(
        task_id="picture",
        argv=["python3", "zmumu_peak.py", "zmumu.npz"],
        scripts=job["draw"],
        inputs=merge.output["outputs"],
        outputs=[{"lfn": name, "access": "vo"} for name in ("zmumu.png", "result.json")],
        payload_owner=OWNER,
        credential=proxy.output,
        panda_queue=QUEUE,
        doc_md="One job that draws the merged events and fits the mass peak: a look before they are used.",
    )

    @task(outlets=[EVENTS])
    def publish(merged: list[dict]) -> object:
        """The merged file as an asset, once it has been looked at."""
        yield Metadata(EVENTS, {"inputs": [{"lfn": file["lfn"], "source": file["source"]} for file in merged]})

    evgen >> wanted() >> job >> merge >> picture >> publish(merge.output["outputs"])


def seed_of(moment: datetime) -> int:
    """The first seed of a period: each hour has 10 000 of its own, for nine years; Pythia takes up to 900 000 000."""
    hour = int((moment - FIRST).total_seconds()) // 3600  # Airflow's moments differ by no plain timedelta
    return 1 + hour % 80_000 * 10_000


def physics(name: str) -> str:
    """A payload's text; read when a task runs, not when the DAG is."""
    return Path(conf.get("airpanda", "include_dir"), "physics", name).read_text()


production_campaign()
