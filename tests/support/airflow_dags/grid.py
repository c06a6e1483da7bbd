"""One panda task and its successor, in the variants that the tests of clearing need."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, task

from airpanda.operators.jobs import PandaJobOperator, PandaTaskOperator
from airpanda.operators.retries import PandaRetryPolicy

PARAMS = {
    "n": Param(3, type="integer"),
    "command": Param("true", type="string"),
    "owner": Param("alice", type="string"),
    "queue": Param("DEMO"),
    "success": Param("all"),
    "credential": Param(None),
    "hold_in": Param("submit", enum=["submit", "resume"]),
    "hold_s": Param(0, type="number"),
    "pid_file": Param("", type="string"),
}
QUICK = PandaRetryPolicy(site_wait=timedelta(seconds=1), system_wait=timedelta(seconds=1))


class HeldTaskOperator(PandaTaskOperator):
    """Stays a running process for a while where a test can kill or clear it: after the submission, or on resuming."""

    def execute(self, context: Any) -> Any:
        self.params_of_run = context["params"]
        return super().execute(context)

    def defer(self, **kwargs: Any) -> None:
        _hold(self.params_of_run, "submit")
        super().defer(**kwargs)

    def execute_complete(self, context: Any, event: Any) -> dict[str, Any]:
        _hold(context["params"], "resume")
        return super().execute_complete(context, event)


def _hold(params: Any, phase: str) -> None:
    file = Path(params["pid_file"])
    if params["hold_in"] == phase and not file.exists():
        file.write_text(str(os.getpid()))
        time.sleep(params["hold_s"])


def make(dag_id: str, operator: type[PandaTaskOperator] = PandaTaskOperator, **options: Any) -> None:
    """A DAG of this id."""

    @dag(dag_id, schedule=None, params=PARAMS, render_template_as_native_obj=True, doc_md=__doc__)
    def wire() -> None:
        common = {
            "task_id": "work",
            "payload_owner": "{{ params.owner }}",
            "panda_queue": "{{ params.queue }}",
            "poll": timedelta(seconds=0.5),
            "retry_policy": QUICK,
            "credential": "{{ params.credential }}",
        }
        if operator is PandaJobOperator:
            work = PandaJobOperator(argv=["sh", "-c", "{{ params.command }}"], outputs=["o"], **common | options)
        else:
            template = {
                "job_name": "job-{n}",
                "argv": ["sh", "-c", "{{ params.command }}"],
                "outputs": [{"lfn": "out-{n}"}],
                "max_attempt": 1,
            }
            work = operator(
                template=template, count="{{ params.n }}", success="{{ params.success }}", **common | options
            )

        @task
        def after(result: Any) -> int:
            return len(result["outputs"])

        after(work.output)

    wire()


make("grid")
make("grid_retry", retries=2)
make("grid_all", rerun="all")
make("grid_job", PandaJobOperator)
make("grid_held", HeldTaskOperator)
make("grid_held_retry", HeldTaskOperator, retries=1, retry_delay=timedelta(seconds=1))
make("grid_deleted")
