"""Races between a person, the triggerer, workers and pilots. Each is repeated ``AIRPANDA_RACES`` times (default 2)."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.airflow_grid import Grid, grid_fixture
from support.airflow_rig import airflow_rig, postgres

__all__ = ["airflow_rig", "grid_fixture", "postgres"]
RACES = int(os.environ.get("AIRPANDA_RACES", "2"))
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900 + 300 * RACES)]


def test_clear_a_deferred_task(grid: Grid) -> None:
    """Try 2 adopts the jobs before or after try 1's on_kill comes: in no order is work lost or doubled."""
    for n in range(RACES):
        run = grid.start(n=2)
        jobs = grid.claim(run)
        for job in jobs[n % 3 :]:
            grid.rig.pilots.run(grid.dn, job)
        time.sleep(random.uniform(0, 1))
        grid.clear(run)
        grid.waits(run, 2)
        time.sleep(random.uniform(0, 3))  # on_kill comes some seconds later
        grid.finish_what_is_left(run, jobs)
        grid.ends(run, "success", 2)
        grid.assert_never_doubled(run)


def test_clear_with_the_triggerer_down(grid: Grid) -> None:
    """Nobody calls on_kill: the next try adopts what runs, and the pilot notices nothing."""
    for _ in range(RACES):
        run = grid.start(n=2)
        jobs = grid.claim(run)
        for job in jobs:
            grid.rig.pilots.run(grid.dn, job)
        grid.rig.stop("triggerer", random.choice([signal.SIGTERM, signal.SIGKILL]))
        try:
            grid.clear(run)
            grid.waits(run, 2)
        finally:
            grid.rig.start("triggerer")
        grid.finish(*jobs)
        grid.ends(run, "success", 2)
        assert {attempt for _, attempt in grid.states(run).values()} == {1}
        grid.assert_never_doubled(run)


def test_kill_9_of_a_worker_between_submission_and_deferral(grid: Grid, tmp_path: Path) -> None:
    """The next try finds the jobs by their key and adopts them."""
    for n in range(RACES):
        pid_file = tmp_path / f"pid{n}"
        run = grid.start_held("grid_held_retry", n=2, hold_s=600, pid_file=str(pid_file))
        jobs = grid.claim(run, "grid_held_retry")
        for job in jobs:
            grid.rig.pilots.run(grid.dn, job)
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        grid.waits(run, 2, "grid_held_retry")
        grid.finish(*jobs)
        grid.ends(run, "success", 2, "grid_held_retry")
        assert {attempt for _, attempt in grid.states(run, "grid_held_retry").values()} == {1}
        grid.assert_never_doubled(run, "grid_held_retry")


def test_jobs_of_a_dag_that_is_deleted_while_they_run_are_stopped_by_the_watchdog(grid: Grid) -> None:
    """Its runs, task instances and triggers are gone; nobody calls on_kill."""
    dag = "grid_deleted"
    run = grid.start(dag, n=2)
    grid.watched(run, dag)
    (job,) = grid.rig.pilots.claim(grid.dn, n=1)
    grid.rig.pilots.run(grid.dn, job)
    bystander = grid.start(n=1)
    deleted = grid.rig.client.http.delete(f"/api/v2/dags/{dag}")
    assert deleted.is_success, deleted.text
    watch = grid.rig.client.start("panda_watchdog")
    grid.rig.client.wait_for("panda_watchdog", watch, "stop_orphans", "success")
    (stopped,) = grid.rig.client.value("panda_watchdog", watch, "stop_orphans")
    assert (stopped["owner"], stopped["state"]) == ("alice", None)
    assert sorted(status for status, _ in grid.states(run, dag).values()) == ["cancelled", "running"]
    reply = grid.rig.pilots.do(grid.rig.pilots.pilot(grid.dn).good_report(job, "running"))
    assert reply["command"] == "tobekilled"
    assert {status for status, _ in grid.states(bystander).values()} == {"activated"}


def test_jobs_of_a_run_that_is_deleted_with_the_triggerer_down_are_stopped_by_the_watchdog(grid: Grid) -> None:
    """Airflow deletes a run that is marked as failed; of its task nothing is left that could call on_kill."""
    run = grid.start(n=2)
    (job,) = grid.rig.pilots.claim(grid.dn, n=1)
    grid.rig.pilots.run(grid.dn, job)
    there = f"/api/v2/dags/grid/dagRuns/{run}"
    grid.rig.stop("triggerer")
    try:
        for answer in (
            grid.rig.client.http.patch(there, json={"state": "failed"}),
            grid.rig.client.http.delete(there),
        ):
            assert answer.is_success, answer.text
    finally:
        grid.rig.start("triggerer")
    watch = grid.rig.client.start("panda_watchdog")
    grid.rig.client.wait_for("panda_watchdog", watch, "stop_orphans", "success")
    assert sorted(status for status, _ in grid.states(run).values()) == ["cancelled", "running"]
    reply = grid.rig.pilots.do(grid.rig.pilots.pilot(grid.dn).good_report(job, "running"))
    assert reply["command"] == "tobekilled"


@pytest.mark.parametrize("state", ["success", "failed"])
def test_marked_with_the_triggerer_down_the_watchdog_cancels_the_jobs(grid: Grid, state: str) -> None:
    """Nobody calls on_kill, and no other try comes: the DAG panda_watchdog finds what nobody waits for."""
    bystander = grid.start(n=1)
    run = grid.start(n=2)
    grid.rig.stop("triggerer")
    try:
        grid.rig.client.mark("grid", run, "work", state)
    finally:
        grid.rig.start("triggerer")
    watch = grid.rig.client.start("panda_watchdog")
    grid.rig.client.wait_for("panda_watchdog", watch, "stop_orphans", "success")
    assert {status for status, _ in grid.states(run).values()} == {"cancelled"}
    assert {status for status, _ in grid.states(bystander).values()} == {"activated"}
