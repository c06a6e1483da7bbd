"""The shipped DAGs in a real Airflow: the campaign from its form to its asset, the analysis that this starts, and the
campaign for periods of the past.

The campaign has a schedule here. So it also runs for the month that has begun last, as the owner ``robot``, whom this
Airflow does not know: that run fails before it asks anything of the job store.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.airflow_grid import Grid, grid_fixture
from support.airflow_rig import Rig, postgres, running_rig
from support.postgres import Server

__all__ = ["grid_fixture", "postgres"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
CAMPAIGN, ANALYSIS = "production_campaign", "analysis_zmumu"
MONTHS = ("2026-02-01", "2026-03-01", "2026-04-01")


@pytest.fixture(scope="module", name="airflow_rig")
def airflow_with_a_schedule(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The campaign once a month."""
    scheduled = ("campaign_schedule =\n", "campaign_schedule = @monthly\n")
    home = tmp_path_factory.mktemp("airflow")
    with running_rig(postgres, home, changes=[scheduled], more_dags=["examples/function_on_the_grid.py"]) as rig:
        yield rig


def jobs_of(grid: Grid, dag_id: str, run: str, task_id: str) -> list[dict[str, Any]]:
    """Claimed, once the task waits for them."""
    grid.rig.client.wait_for(dag_id, run, task_id, "deferred", timeout_s=240)
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
    client.wait_for(CAMPAIGN, run, "publish", "success", timeout_s=240)

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
    client.wait_for(ANALYSIS, analysis["dag_run_id"], "judge", "success", timeout_s=240)
    assert client.value(ANALYSIS, analysis["dag_run_id"], "judge") == fit


def run_function(job: dict[str, Any], sandbox: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """As a pilot runs a function, but under this account; its outputs. ``files``: contents by an input's source."""
    sandbox.mkdir()
    for name, text in job["spec"]["scripts"].items():
        (sandbox / name).write_text(text)
    for each in job["spec"]["inputs"]:
        (sandbox / each["lfn"]).write_bytes(files[each["source"]])
    subprocess.run([sys.executable, *job["spec"]["argv"][1:]], cwd=sandbox, check=True, timeout=120)
    return {each["lfn"]: (sandbox / each["lfn"]).read_bytes() for each in job["spec"]["outputs"]}


def test_mapped_functions_run_each_for_itself_and_one_of_them_is_cleared_alone(grid: Grid, tmp_path: Path) -> None:
    """``@panda_task`` with ``.expand``: three task instances of Airflow, and one that takes what they return."""
    client, dag_id = grid.rig.client, "function_on_the_grid"
    run = grid.adopt(dag_id, client.start(dag_id))
    jobs: dict[int, dict[str, Any]] = {}

    def all_there() -> bool:
        jobs.update((job["panda_id"], job) for job in grid.rig.pilots.claim(grid.dn))
        return len(jobs) == 3

    def states() -> list[str]:
        return [client.task(dag_id, run, "throw", n)["state"] for n in range(3)]

    grid.rig.wait(all_there, why="the mapped tasks' jobs")
    thrown = {json.loads(job["spec"]["scripts"]["panda_call.json"])["args"][0]: job for job in jobs.values()}
    assert set(thrown) == {100_000, 200_000, 300_000}
    files: dict[str, bytes] = {}

    def finish(job: dict[str, Any]) -> None:
        made = run_function(job, tmp_path / f"{job['panda_id']}-{job['attempt_nr']}", files)
        files.update((f"panda:{job['panda_id']}/{name}", content) for name, content in made.items())
        grid.rig.pilots.finish(grid.dn, job, contents=made)

    finish(thrown[100_000])
    finish(thrown[300_000])
    bad = thrown[200_000]
    for _ in range(3):  # its attempts
        grid.fail(bad)
        (bad,) = grid.rig.pilots.claim(grid.dn) or (bad,)
    grid.rig.wait(lambda: client.run_state(dag_id, run) == "failed", why="the run's end")
    assert states() == ["success", "failed", "success"]
    cleared = {"dry_run": False, "task_ids": [["throw", 1], "combine"], "dag_run_id": run, "only_failed": False}
    assert client.http.post(f"/api/v2/dags/{dag_id}/clearTaskInstances", json=cleared).is_success
    again: list[dict[str, Any]] = []
    grid.rig.wait(lambda: again.extend(grid.rig.pilots.claim(grid.dn)) or again, why="the failed one's job")
    assert [(job["panda_id"], job["attempt_nr"]) for job in again] == [(bad["panda_id"], 4)]
    finish(again[0])
    (combine,) = jobs_of(grid, dag_id, run, "combine")
    points = [f"panda:{thrown[n]['panda_id']}/points.json" for n in (100_000, 200_000, 300_000)]
    assert [each["source"] for each in combine["spec"]["inputs"]] == points
    finish(combine)
    client.wait_for(dag_id, run, "combine", "success", timeout_s=180)
    assert client.value(dag_id, run, "combine") == pytest.approx(3.14, abs=0.02)


def test_a_backfill_asks_for_each_period_once_and_a_repeat_for_what_failed(grid: Grid) -> None:
    client = grid.rig.client
    grid.rig.wait(lambda: client.knows(CAMPAIGN))
    with backfill(grid, "none") as runs:
        assert [run[10:20] for run in runs] == list(MONTHS)
        for run in runs:
            client.wait_for(CAMPAIGN, run, "evgen", "deferred", timeout_s=240)
        jobs = grid.rig.pilots.claim(grid.dn)
        first, second, third = (grid.states(run, CAMPAIGN, "evgen") for run in runs)
        assert len(jobs) == len(first | second | third) == 6
        assert len({job["spec"]["argv"][5] for job in jobs}) == 6, "no two periods have a seed in common"
        assert asked(grid) == [(run, 1, 2) for run in runs]
        bad = max(second)
        grid.finish(*(job for job in jobs if job["panda_id"] != bad))
        (failing,) = (job for job in jobs if job["panda_id"] == bad)
        for _ in range(3):  # its attempts
            grid.fail(failing)
            (failing,) = grid.rig.pilots.claim(grid.dn) or (failing,)
        ended(grid, dict(zip(runs, ("success", "failed", "success"), strict=True)))

    with backfill(grid, "none") as again:
        assert again == runs
    with backfill(grid, "failed") as again:
        assert again == runs
        client.wait_for(CAMPAIGN, runs[1], "evgen", "deferred", tries=2, timeout_s=240)
        (failing,) = grid.rig.pilots.claim(grid.dn)
        assert (failing["panda_id"], failing["attempt_nr"]) == (bad, 4), "only what failed runs again"
        grid.finish(failing)
        ended(grid, dict.fromkeys(runs, "success"))

    before = [grid.states(run, CAMPAIGN, "evgen") for run in runs]
    with backfill(grid, "completed"):
        for run in runs:
            client.wait_for(CAMPAIGN, run, "evgen", "success", tries=3 if run == runs[1] else 2, timeout_s=240)
        ended(grid, dict.fromkeys(runs, "success"))
    assert [grid.states(run, CAMPAIGN, "evgen") for run in runs] == before
    assert asked(grid) == [(run, 1, 2) for run in runs], "nothing is asked twice"


@contextlib.contextmanager
def backfill(grid: Grid, reprocess: str) -> Iterator[list[str]]:
    """The campaign for three months, two jobs each; the ids of their runs. At the end of the block it is closed, which
    Airflow does by itself within half a minute, since it allows one backfill of a DAG at a time."""
    http = grid.rig.client.http
    body = {
        "dag_id": CAMPAIGN,
        "from_date": f"{MONTHS[0]}T00:00:00Z",
        "to_date": f"{MONTHS[-1]}T00:00:00Z",
        "reprocess_behavior": reprocess,
        "dag_run_conf": {"owner": "alice", "n_jobs": 2, "validate": False, "n_pilots": 0},
    }
    made = http.post("/api/v2/backfills", json=body)
    assert made.status_code == 200, made.text
    found = http.get(f"/api/v2/dags/{CAMPAIGN}/dagRuns", params={"run_type": "backfill", "order_by": "logical_date"})
    yield [grid.adopt(CAMPAIGN, run["dag_run_id"]) for run in found.json()["dag_runs"]]
    closed = http.put(f"/api/v2/backfills/{made.json()['id']}/cancel")
    assert closed.status_code in (200, 409), closed.text


def ended(grid: Grid, states: dict[str, str]) -> None:
    """Wait until the runs have ended like this."""
    for run, state in states.items():
        grid.rig.wait(lambda run=run: grid.rig.client.run_state(CAMPAIGN, run) in ("success", "failed"), 240)
        assert grid.rig.client.run_state(CAMPAIGN, run) == state, run


def asked(grid: Grid) -> list[tuple[Any, ...]]:
    """(run, number of panda tasks with different keys, number of jobs) of the backfilled periods, in their order."""
    return grid.rig.sql(
        "SELECT ti->>'run_id', count(DISTINCT key_digest), sum(n_jobs)::int FROM panda_task"
        " WHERE ti->>'dag_id' = %s AND ti->>'run_id' LIKE 'backfill%%' GROUP BY 1 ORDER BY 1",
        CAMPAIGN,
    )
