"""The shipped DAGs in a real Airflow: the campaign from its form to its asset, and the analysis that this starts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.airflow_grid import Grid, grid_fixture
from support.airflow_rig import airflow_rig, postgres

__all__ = ["airflow_rig", "grid_fixture", "postgres"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
CAMPAIGN, ANALYSIS = "production_campaign", "analysis_zmumu"


def jobs_of(grid: Grid, dag_id: str, run: str, task_id: str) -> list[dict[str, Any]]:
    """Claimed, once the task waits for them."""
    grid.rig.client.wait_for(dag_id, run, task_id, "deferred", timeout_s=180)
    return grid.rig.pilots.claim(grid.dn)


def test_a_campaign_is_made_cleared_merged_drawn_and_analysed(grid: Grid) -> None:
    client = grid.rig.client
    form = client.http.get(f"/api/v2/dags/{CAMPAIGN}/details").json()["params"]
    assert form["n_jobs"]["schema"] | {"maximum": 10_000, "minimum": 1, "title": "Jobs"} == form["n_jobs"]["schema"]
    refused = client.http.post(
        f"/api/v2/dags/{CAMPAIGN}/dagRuns", json={"logical_date": None, "conf": {"n_jobs": 10_001}}
    )
    assert refused.status_code == 400, "the form's limits hold for everybody"

    run = client.start(CAMPAIGN, n_jobs=3, owner="alice", first_seed=7, events_per_job=50, priority=5)
    jobs = jobs_of(grid, CAMPAIGN, run, "evgen")
    assert [job["spec"]["argv"][2:6] for job in jobs] == [["--events", "50", "--seed", str(n)] for n in (7, 8, 9)]
    assert {job["spec"]["priority"] for job in jobs} == {5}
    assert "def produce" in jobs[0]["spec"]["scripts"]["evgen_zmumu.py"]
    grid.finish(*jobs[:2])
    for _ in range(3):  # its attempts
        grid.fail(jobs[2])
        jobs[2:] = grid.rig.pilots.claim(grid.dn) or jobs[2:]
    client.wait_for(CAMPAIGN, run, "evgen", "failed")
    # A person sees the run fail first; a clear in the same second meets a scheduler that still fails its successors.
    grid.rig.wait(lambda: client.run_state(CAMPAIGN, run) == "failed", why="the run's end")
    client.clear(CAMPAIGN, run, "evgen", downstream=True)
    client.wait_for(CAMPAIGN, run, "evgen", "deferred", tries=2)
    again = grid.rig.pilots.claim(grid.dn)
    assert [job["spec"]["argv"][5] for job in again] == ["9"], "only the failed job runs again"
    grid.finish(*again)

    (merge,) = jobs_of(grid, CAMPAIGN, run, "merge")
    assert merge["spec"]["argv"][4:] == ["zmumu-7.npz", "zmumu-8.npz", "zmumu-9.npz"]
    grid.finish(merge)
    (picture,) = jobs_of(grid, CAMPAIGN, run, "picture")
    assert [item["source"] for item in picture["spec"]["inputs"]] == [f"panda:{merge['panda_id']}/zmumu.npz"]
    grid.finish(picture)
    client.wait_for(CAMPAIGN, run, "publish", "success", timeout_s=180)

    def started() -> Any:
        return client.http.get(f"/api/v2/dags/{ANALYSIS}/dagRuns").json()["dag_runs"]

    (analysis,) = grid.rig.wait(started, why="the run that the asset starts")
    (peak,) = jobs_of(grid, ANALYSIS, analysis["dag_run_id"], "peak")
    assert [item["source"] for item in peak["spec"]["inputs"]] == [f"panda:{merge['panda_id']}/zmumu.npz"]
    grid.finish(peak)
    (judge,) = jobs_of(grid, ANALYSIS, analysis["dag_run_id"], "judge")
    assert json.loads(judge["spec"]["scripts"]["panda_call.json"])["args"] == [{"$file": "result.json"}]
    fit = {"mass_gev": 91.2, "pull": 0.1, "agrees": True}
    grid.rig.pilots.finish(grid.dn, judge, contents={"panda_result.json": json.dumps(fit).encode()})
    client.wait_for(ANALYSIS, analysis["dag_run_id"], "judge", "success", timeout_s=180)
    assert client.value(ANALYSIS, analysis["dag_run_id"], "judge") == fit
