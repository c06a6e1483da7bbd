"""A production campaign: Z → µµ events by Pythia 8, as the production robot.

stage the robot's proxy → submit the jobs and, beside them, the pilots that pull them → the files as an asset.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import Asset, Param, conf, dag, task

from airpanda.operators.jobs import PandaTaskOperator
from airpanda.operators.pilots import PilotSubmitOperator
from airpanda.operators.proxies import MyProxyStageOperator

EVENTS = Asset("airpanda://production/zmumu")


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["airpanda", "production"],
    params={
        "queue": Param("DEMO", type="string", title="PanDA queue"),
        "owner": Param("robot", type="string", title="Payload owner", description="short name of a staged owner"),
        "n_jobs": Param(20, type="integer", minimum=1, maximum=10_000, title="Jobs"),
        "events_per_job": Param(500, type="integer", minimum=1, maximum=1_000_000, title="Events per job"),
        "first_seed": Param(1, type="integer", minimum=1, maximum=800_000_000, title="Seed of the first job"),
        "n_pilots": Param(2, type="integer", minimum=1, maximum=1000, title="Pilots to send"),
    },
    doc_md=__doc__,
    render_template_as_native_obj=True,
)
def production_campaign() -> None:
    """Wire the campaign."""
    queue = "{{ params.queue }}"

    @task
    def plan(params: dict | None = None) -> list[dict]:
        """One job per seed."""
        script = Path(conf.get("airpanda", "include_dir"), "physics", "evgen_zmumu.py").read_text()
        return [
            {
                "job_name": f"evgen-{seed}",
                "argv": ["python3", "evgen_zmumu.py", "--events", str(params["events_per_job"])]
                + ["--seed", str(seed), "--output", f"zmumu-{seed}.npz"],
                "scripts": {"evgen_zmumu.py": script},
                "outputs": [{"lfn": f"zmumu-{seed}.npz", "access": "vo"}],
                "walltime_s": 1800,
            }
            for seed in range(params["first_seed"], params["first_seed"] + params["n_jobs"])
        ]

    proxy = MyProxyStageOperator(task_id="stage_proxy", payload_owner="{{ params.owner }}", lifetime=timedelta(days=1))
    evgen = PandaTaskOperator(
        task_id="evgen",
        jobs=plan(),
        payload_owner="{{ params.owner }}",
        credential=proxy.output,
        panda_queue=queue,
        outlets=[EVENTS],
    )
    pilots = PilotSubmitOperator(task_id="send_pilots", panda_queue=queue, n_pilots="{{ params.n_pilots }}")
    proxy >> [evgen, pilots]


production_campaign()
