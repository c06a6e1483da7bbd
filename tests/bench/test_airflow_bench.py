"""What the Airflow surface costs where it is paid for again and again: imports, DAG files, submissions, waiting."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from bench import cpu
from bench import store_load as load
from bench.record import record
from support.dispatcher import job_database, spec, template_database, ti
from support.gateway import GatewayPlace, RunningGateway, good
from support.pki import Pki, pki
from support.postgres import Database, postgres
from support.task_context import Context

from airpanda.operators.jobs import PandaTaskOperator

__all__ = ["job_database", "pki", "postgres", "template_database"]
ROOT = Path(__file__).resolve().parents[2]
IMPORT_BAR_S, PARSE_BAR_S, SUBMIT_BAR_S, RUNS = 0.2, 0.3, 5.0, 5
JOBS, WAITING, WATCHED_S = 10_000, (1, 100, 1000), 20.0
FREE = {"PILOT_RATE": "0", "CLIENT_RATE": "0", "STRANGER_RATE": "0"}
# What any DAG file of anybody imports, and what every process that reads one has loaded already.
AIRFLOW = "import airflow.sdk, airflow.sdk.definitions.dag, airflow.triggers.base; from airflow.sdk import *"
_SCRIPT = """
import time
{before}
began = time.process_time()
{timed}
print(time.process_time() - began)
"""


def cpu_s(before: str, timed: str) -> float:
    """CPU seconds of the second part, in fresh processes: the median, after one that fills caches."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "plugins")}
    each = []
    for _ in range(RUNS + 1):
        script = _SCRIPT.format(before=before, timed=timed)
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
        )
        each.append(float(done.stdout.split()[-1]))
    return median(each[1:])


@pytest.mark.parametrize("module", ["airpanda.operators.jobs", "airpanda.decorators.panda_task"])
def test_import_beyond_airflow(module: str) -> None:
    spent = cpu_s(AIRFLOW, f"import {module}")
    record(
        f"airflow, import {module}", spent, "s", against={"bar": IMPORT_BAR_S}, ratio=spent / IMPORT_BAR_S,
        conditions=f"CPU beyond importing Airflow; median of {RUNS} processes",
    )  # fmt: skip


@pytest.mark.parametrize("dag", ["production_campaign", "analysis_zmumu", "examples/hello_grid", "panda_watchdog"])
def test_parse_beyond_airflow(dag: str) -> None:
    timed = f"import runpy; runpy.run_path({str(ROOT / 'dags' / dag) + '.py'!r})"
    spent = cpu_s(AIRFLOW, timed)
    record(
        f"airflow, read {dag}.py", spent, "s", against={"bar": PARSE_BAR_S}, ratio=spent / PARSE_BAR_S,
        conditions=f"CPU beyond importing Airflow, our modules included; median of {RUNS} processes",
    )  # fmt: skip


@pytest.fixture(name="place")
def _place(job_database: Database, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayPlace]:
    """A gateway in a process of its own, named by the Connection."""
    place = GatewayPlace.create(job_database, pki, tmp_path / "gateway", FREE)
    try:
        place.start()
        there = {
            "conn_type": "http", "host": "localhost", "port": place.port, "schema": "https",
            "password": place.running().client_token(), "extra": {"ca_file": str(pki.ca_dir)},
        }  # fmt: skip
        monkeypatch.setenv("AIRFLOW_CONN_PANDA_DEFAULT", json.dumps(there))
        yield place
    finally:
        place.kill()


def credential(gateway: RunningGateway) -> dict[str, Any]:
    with gateway.client() as http:
        wanted = load.registration(gateway.pki.dn("pilot")) | {"scope": "user"}
        return dict(good(http.post("/v1/creds/register", json=wanted)))


def test_submission_from_one_task(place: GatewayPlace) -> None:
    """The operator in this process: template, validation, request; the dispatcher behind TLS; PostgreSQL."""
    assert place.process is not None
    given = {"credential": credential(place.running()), "payload_owner": "alice", "panda_queue": "DEMO"}
    template = {"job_name": "scan-{n:06d}", "argv": ["python3", "scan.py", "--seed", "{n}"], "env": load.ENV}
    walls, here, there = [], [], []
    for _ in range(4):
        task = PandaTaskOperator(task_id="t", template=template, count=JOBS, **given)
        wall, own, gateway = time.perf_counter(), time.process_time(), cpu.of_tree(place.process.pid)
        with pytest.raises(TaskDeferred):
            task.execute(Context(run_id=secrets.token_hex(4)))
        walls.append(time.perf_counter() - wall)
        here.append(time.process_time() - own)
        there.append(cpu.of_tree(place.process.pid) - gateway)
    spent = median(walls[1:])
    record(
        "airflow, submit 10 000 jobs from one task", spent, "s", against={"bar": SUBMIT_BAR_S},
        ratio=spent / SUBMIT_BAR_S,
        conditions=f"wall, median of 3 after a first; of it CPU of the task {median(here[1:]):.2f} s, of the gateway"
        f" {median(there[1:]):.2f} s; one job has eight variables; TLS on loopback",
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_waiting_tasks(place: GatewayPlace) -> None:
    gateway = place.running()
    number = credential(gateway)["credential_id"]
    tasks = []
    with gateway.client() as http:
        for n in range(max(WAITING)):
            wanted = {
                "task_key": f"k{n}", "task_name": "bench", "owner": "alice", "queue": "DEMO", "ti": ti(),
                "credential_id": number, "jobs": [spec()],
            }  # fmt: skip
            tasks.append(good(http.post("/v1/job/submit", json=wanted))["task_id"])
    shares = {n: waiting(tasks[:n]) for n in WAITING}
    for n, share in shares.items():
        record(
            f"airflow, CPU of {n} waiting tasks", share, "of a core", against={"one task": shares[1]},
            ratio=share / shares[1] if shares[1] else None,
            conditions=f"our triggers in one event loop, without Airflow's triggerer around them; {WATCHED_S:.0f} s,"
            " one question each second",
        )  # fmt: skip


def waiting(tasks: list[int]) -> float:
    """CPU seconds per second of a process in which these panda tasks are waited for."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("waiting_tasks.py"))],
        input=json.dumps({"tasks": tasks, "seconds": WATCHED_S}), capture_output=True, text=True, timeout=300,
        check=False, env=os.environ | {"PYTHONPATH": str(ROOT / "plugins")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["events"], answer["ended"]) == ([], 0), "all of them wait"
    return float(answer["share"])
