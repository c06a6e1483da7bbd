"""CeleryExecutor with Redis: two workers that cannot reach the database, and one of them dies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.airflow_grid import Grid
from support.airflow_rig import Rig
from support.celery_rig import WORKERS, airflow_rig, environment_of, postgres

from airpanda_demo.processes import processes

__all__ = ["airflow_rig", "postgres"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
DAG = "grid_held_retry"
SECOND = "second-host"


@dataclass(frozen=True)
class Death:
    """``runs``: what each run was at when worker-1 was killed with everything below it."""

    grid: Grid
    runs: dict[str, str]


@pytest.fixture(scope="module")
def death(airflow_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Death]:
    """worker-1 has taken three runs: it submits one, resumes one, and has let go of one that waits. Then it dies."""
    home, grid = tmp_path_factory.mktemp("pids"), Grid(airflow_rig)
    submitting, resuming = home / "submit", home / "resume"
    airflow_rig.start("worker-1")
    runs = {"resumed": grid.start(DAG, n=2, hold_in="resume", hold_s=600, pid_file=str(resuming))}
    grid.finish(*grid.claim(runs["resumed"], DAG))
    airflow_rig.wait(lambda: resuming.exists() and resuming.read_text(), why="resuming")
    runs["waited"] = grid.start(DAG, n=2, pid_file=str(home / "none"))
    waiting = grid.claim(runs["waited"], DAG)
    runs["submitted"] = grid.start_held(DAG, n=2, hold_s=600, pid_file=str(submitting))
    submitted = grid.claim(runs["submitted"], DAG)
    for job in [*waiting, *submitted]:
        grid.rig.pilots.run(grid.dn, job)
    airflow_rig.start("worker-2")
    airflow_rig.lose("worker-1")
    for file in (submitting, resuming):
        assert not is_alive(int(file.read_text())), "the task's process has survived its worker"
    grid.finish(*waiting, *submitted)
    yield Death(grid, runs)
    grid.end()


def is_alive(pid: int) -> bool:
    found = processes().get(pid)
    return found is not None and found.state != "Z"


@pytest.mark.parametrize("phase", ["submitted", "resumed", "waited"])
def test_a_worker_dies_while_its_task(death: Death, phase: str) -> None:
    """The other worker goes on: each job is submitted once and runs once, and the DAG run succeeds."""
    grid, run = death.grid, death.runs[phase]
    tries = 1 if phase == "waited" else 2
    ti = grid.ends(run, "success", tries, DAG)
    assert ti["hostname"] == "worker-2"
    if tries == 2:
        first = grid.rig.client.one_try(DAG, run, "work", 1)
        assert (first["hostname"], first["state"]) == ("worker-1", "failed")
    assert sorted(grid.states(run, DAG).values()) == [("finished", 1)] * 2
    grid.assert_never_doubled(run, DAG)
    grid.rig.client.wait_for(DAG, run, "after", "success")
    assert grid.rig.client.value(DAG, run, "after") == 2, "the successor sees the outputs of all jobs"
    grid.rig.wait(lambda: grid.rig.client.run_state(DAG, run) == "success")


def test_workers_have_no_database_and_none_of_the_installations_keys(airflow_rig: Rig) -> None:
    """What the tests above prove is worth something only if a worker that asks the database fails."""
    asked = subprocess.run(
        [sys.executable, "-m", "airflow", "db", "check"],
        env=environment_of(airflow_rig, "worker-2"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert asked.returncode != 0
    assert "Connection refused" in asked.stdout + asked.stderr
    for worker in WORKERS:
        environment = environment_of(airflow_rig, worker)
        seen = (Path(environment["AIRFLOW_HOME"]) / "airflow.cfg").read_text() + str(environment)
        for secret in ("fernet_key", "jwt_secret", "signing.pem", "connections.json", airflow_rig.database.name):
            assert secret not in seen


def test_a_queue_is_waited_for_until_it_has_room_in_both_ways(death: Death) -> None:
    """In the triggerer and by being rescheduled, with what the templates say."""
    grid, rig, dag_id = death.grid, death.grid.rig, "queue_sensors"
    full = grid.start(DAG, n=2, queue="OTHER")
    run = rig.client.start(dag_id, queue="OTHER", at_most_waiting=1)
    rig.client.wait_for(dag_id, run, "deferred", "deferred")
    rig.client.wait_for(dag_id, run, "rescheduled", "up_for_reschedule")
    grid.finish(*grid.claim(full, DAG, "OTHER"), queue="OTHER")
    for task_id in ("deferred", "rescheduled"):
        rig.client.wait_for(dag_id, run, task_id, "success")
        seen = rig.client.value(dag_id, run, task_id)
        assert (seen["queue"], seen["state"], seen["waiting"]) == ("OTHER", "online", 0)


def test_two_schedulers_and_two_triggerers_and_one_of_each_dies(death: Death) -> None:
    """Those that are left take over what waits: nothing is lost, nothing is done twice."""
    grid, rig = death.grid, death.grid.rig
    start_second_ones(rig)
    runs = [rig.client.start(DAG, n=2) for _ in range(4)]
    for run in runs:
        grid.waits(run, dag_id=DAG)
    holding = rig.wait(
        lambda: rig.sql("SELECT DISTINCT j.hostname FROM trigger t JOIN job j ON j.id = t.triggerer_id"),
        why="a triggerer's care",
    )
    jobs = rig.pilots.claim(grid.dn)
    assert len(jobs) == 2 * len(runs)
    rig.lose("triggerer-2" if holding[0][0] == SECOND else "triggerer")
    rig.lose("scheduler")
    grid.finish(*jobs)
    for run in runs:
        grid.ends(run, "success", 1, DAG)
        rig.client.wait_for(DAG, run, "after", "success", tries=1)
        assert sorted(grid.states(run, DAG).values()) == [("finished", 1)] * 2
        grid.assert_never_doubled(run, DAG)


def start_second_ones(rig: Rig) -> None:
    """Another scheduler and another triggerer, on a host of another name."""
    environment = rig.environment | {
        "PYTHONPATH": environment_of(rig, "worker-2")["PYTHONPATH"],
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": "support.worker_host.name",
        "AIRPANDA_TEST_HOST": SECOND,
    }
    for kind in ("scheduler", "triggerer"):
        name = f"{kind}-2"
        beats = (
            "SELECT 1 FROM job WHERE job_type ILIKE %s AND hostname = %s AND state = 'running'"
            " AND latest_heartbeat > now() - interval '5 s'"
        )
        asked = (f"{kind}job", SECOND)
        rig.services[name] = rig.service(
            name, [kind, "--skip-serve-logs"], lambda b=beats, a=asked: bool(rig.sql(b, *a)), environment
        )
    rig.start("scheduler-2", "triggerer-2")
