"""What whole Airflow spends on panda tasks: slots, the way from the last job's end to success, against mapped tasks.

Real: Airflow 3.3.2 with LocalExecutor and its api-server, the dispatcher, PostgreSQL. Pilots are stand-ins that claim
jobs and say at once that they have finished.
"""

from __future__ import annotations

import asyncio
import time
from statistics import median, quantiles
from typing import Any

import pytest
from bench import cpu
from bench.record import record
from support.airflow_grid import Grid, grid_fixture
from support.airflow_rig import Rig, airflow_rig, postgres

__all__ = ["airflow_rig", "grid_fixture", "postgres"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]
JOBS, MAPPED, RUNS = 10_000, 200, 16  # Airflow lets no more than 16 runs of a DAG be active at once
MEDIAN_BAR_S, P95_BAR_S = 3.0, 6.0
AT_ONCE = 500
CONDITIONS = "Airflow with LocalExecutor, scheduler, triggerer, api-server and PostgreSQL on the same cores"
LATENCIES = """
SELECT extract(epoch FROM ti.end_date - max(a.ended_at))
FROM task_instance ti
JOIN panda_task t ON t.ti->>'dag_id' = ti.dag_id AND t.ti->>'run_id' = ti.run_id AND t.ti->>'task_id' = ti.task_id
JOIN panda_job j ON j.task_id = t.task_id JOIN panda_attempt a USING (panda_id, attempt_nr)
WHERE ti.dag_id = 'load_panda' AND ti.run_id = ANY (%s) AND ti.state = 'success'
GROUP BY ti.id, ti.end_date
"""
SPAN = "SELECT extract(epoch FROM end_date - start_date) FROM dag_run WHERE dag_id = %s AND run_id = %s"
SLOTS = "SELECT count(*) FROM task_instance WHERE state IN ('queued', 'running')"


def test_from_the_last_jobs_end_to_success(grid: Grid) -> None:
    client = grid.rig.client
    runs = [client.start("load_panda", n=1) for _ in range(RUNS)]
    for run in runs:
        client.wait_for("load_panda", run, "work", "deferred", timeout_s=300)
    time.sleep(6)  # no trigger fires sooner after its start
    jobs = grid.rig.pilots.claim(grid.dn)
    assert len(jobs) == RUNS
    for job in jobs:
        grid.finish(job)
        time.sleep(1.3)  # no rhythm of anything
    for run in runs:
        client.wait_for("load_panda", run, "work", "success", timeout_s=300)
    took = sorted(float(seconds) for (seconds,) in grid.rig.sql(LATENCIES, runs))
    assert len(took) == RUNS
    for name, found, bar in (("median", median(took), MEDIAN_BAR_S), ("p95", quantiles(took, n=20)[-1], P95_BAR_S)):
        record(
            f"airflow, last job final to success, {name}", found, "s", against={"bar": bar}, ratio=found / bar,
            conditions=f"{RUNS} runs of one job that ended one after the other; {CONDITIONS}",
        )  # fmt: skip


def test_one_panda_task_against_mapped_tasks(grid: Grid) -> None:
    mapped_s, mapped_cpu = spent(grid, "load_mapped", MAPPED)
    panda_s, panda_cpu = spent(grid, "load_panda", JOBS)
    for what, unit, ours, theirs in (
        ("elapsed", "ms", panda_s / JOBS, mapped_s / MAPPED),
        ("CPU of the scheduler and its tasks", "ms", panda_cpu / JOBS, mapped_cpu / MAPPED),
    ):
        record(
            f"airflow, one panda task of 10 000 jobs, {what} per payload", ours * 1000, unit,
            against={"a mapped task of Airflow": round(theirs * 1000, 3)}, ratio=ours / theirs,
            conditions=f"no-op payloads; {MAPPED} mapped tasks were run; {CONDITIONS}",
        )  # fmt: skip


def spent(grid: Grid, dag_id: str, n: int) -> tuple[float, float]:
    """Seconds from the run's start to its end, and CPU seconds of the scheduler with all that it has started."""
    scheduler = grid.rig.services["scheduler"].process
    assert scheduler is not None
    before = cpu.of_tree(scheduler.pid)
    run = grid.rig.client.start(dag_id, n=n)
    if dag_id == "load_panda":
        grid.rig.client.wait_for(dag_id, run, "work", "deferred", timeout_s=300)
        nobody_works(grid.rig)
        finish(grid, n)
    grid.rig.wait(lambda: grid.rig.client.run_state(dag_id, run) in ("success", "failed"), 1500)
    assert grid.rig.client.run_state(dag_id, run) == "success"
    ((seconds,),) = grid.rig.sql(SPAN, dag_id, run)
    return float(seconds), cpu.of_tree(scheduler.pid) - before


def nobody_works(rig: Rig) -> None:
    """While the jobs wait: neither a queued nor a running task instance, and no slot of the pool."""
    pool = rig.client.http.get("/api/v2/pools/default_pool").json()
    ((working,),) = rig.sql(SLOTS)
    assert pool["deferred_slots"] == 1
    held = max(working, pool["occupied_slots"])
    record(f"airflow, slots held while {JOBS} jobs wait", held, "slots", against={"bar": 0}, conditions=CONDITIONS)


def finish(grid: Grid, n: int) -> None:
    """Pilots that do at once what they get."""
    pilot = grid.rig.pilots.pilot(grid.dn)

    async def all_of_them() -> None:
        done = 0
        while done < n:
            jobs = await pilot.acquire(n_jobs=AT_ONCE)
            for status in ("running", "finished"):
                if jobs:
                    (
                        await pilot.post("update_jobs_bulk", {"job_list": [report(job, status) for job in jobs]})
                    ).raise_for_status()
            done += len(jobs)
            await asyncio.sleep(0 if jobs else 0.05)

    grid.rig.pilots.do(all_of_them(), limit_s=900)


def report(job: dict[str, Any], status: str) -> dict[str, Any]:
    return {
        "job_id": job["panda_id"], "attempt_nr": job["attempt_nr"], "token": job["token"], "job_status": status,
    }  # fmt: skip
