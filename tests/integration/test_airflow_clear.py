"""The clear table of docs/operations.md, row by row, by the calls that Airflow's web UI makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.airflow_grid import Grid, grid_fixture
from support.airflow_rig import airflow_rig, postgres
from support.standin_pilots import SITE_FAULT, USER_FAULT

__all__ = ["airflow_rig", "grid_fixture", "postgres"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]


def test_clearing_a_failed_panda_task_runs_only_what_is_not_finished_and_then_its_successor(grid: Grid) -> None:
    run = grid.start(n=4)
    jobs = grid.claim(run)
    grid.finish(*jobs[:3])
    grid.fail(jobs[3], log=b"Traceback: the payload's own words")
    grid.ends(run, "failed")
    before = grid.states(run)
    grid.clear(run)
    grid.waits(run, tries=2)
    again = grid.claim(run)
    assert [job["panda_id"] for job in again] == [jobs[3]["panda_id"]]
    assert again[0]["attempt_nr"] == 2
    grid.finish(*again)
    grid.ends(run, "success", tries=2)
    assert {k: v for k, v in grid.states(run).items() if k != jobs[3]["panda_id"]} == {
        k: v for k, v in before.items() if k != jobs[3]["panda_id"]
    }
    grid.rig.client.wait_for("grid", run, "after", "success")
    assert grid.rig.client.value("grid", run, "after") == 4, "the successor sees the outputs of all jobs"


def test_the_log_of_a_failure_begins_with_what_failed_whose_fault_it_is_and_what_to_do(grid: Grid) -> None:
    run = grid.start(n=2)
    one, two = grid.claim(run)
    grid.finish(one)
    grid.fail(two, log=b"the payload's own words")
    grid.ends(run, "failed")
    log = grid.log(run)
    first = [
        "1 of 2 jobs did not finish (failed 1); all must finish.",
        f"PandaID {two['panda_id']} (job-1) is failed: exe error 65, the payload exited with 1.",
        "At fault is the payload or its description: its owner must act, trying again changes nothing.",
        "When it is put right, clear this task: only what is not finished runs again.",
    ]
    lines = log.splitlines()
    said = lines.index(first[0])
    assert lines[said : said + 4] == first, "a line each: the web UI cuts what is longer than the page is wide"
    assert lines[said + 4].startswith("Look at its log below (attempt 1, pilot ")
    assert said < lines.index("the payload's own words")


def test_clearing_a_failed_job_takes_a_fresh_credential_when_the_old_one_cannot_serve(grid: Grid) -> None:
    run = grid.start("grid_job")
    (job,) = grid.claim(run, "grid_job")
    for _ in range(3):  # max_attempt
        grid.fail(job)
        (job,) = grid.claim(run, "grid_job") or (job,)
    grid.ends(run, "failed", dag_id="grid_job")
    ((*_, old),) = grid.rig.jobs_of(run, "work", "grid_job")
    grid.rig.sql("UPDATE panda_credential SET expires_at = now() + interval '1 minute' WHERE credential_id = %s", old)
    grid.clear(run, "grid_job")
    grid.waits(run, 2, "grid_job")
    ((_, status, attempt, _, _, fresh),) = grid.rig.jobs_of(run, "work", "grid_job")
    assert (status, attempt) == ("activated", 4)
    assert fresh != old
    grid.finish(*grid.claim(run, "grid_job"))
    grid.ends(run, "success", 2, "grid_job")


def test_clearing_what_a_site_failed_goes_to_another_site(grid: Grid) -> None:
    run = grid.start(n=1, queue=["DEMO", "OTHER"])
    ((_, _, _, first, _, _),) = grid.rig.jobs_of(run, "work")
    other = {"DEMO": "OTHER", "OTHER": "DEMO"}[first]
    for _ in range(21):
        for job in grid.claim(run, queue=first):
            grid.rig.pilots.fail(grid.dn, job, first, error=SITE_FAULT)
    grid.ends(run, "failed")
    assert "At fault is the site, not the payload" in grid.log(run)
    grid.clear(run)
    grid.waits(run, 2)
    assert [row[3] for row in grid.rig.jobs_of(run, "work")] == [other]
    grid.finish(*grid.claim(run, queue=other), queue=other)
    grid.ends(run, "success", 2)


def test_retries_used_up_by_a_site_are_not_the_users(grid: Grid) -> None:
    """The job has one attempt; twenty of a site's failures leave it that one, after the clear."""
    run = grid.start(n=1)
    for _ in range(21):
        grid.fail(*grid.claim(run), error=SITE_FAULT)
    grid.ends(run, "failed")
    ((charged,),) = grid.rig.sql("SELECT charged FROM panda_job WHERE panda_id = %s", next(iter(grid.states(run))))
    assert charged == 0
    grid.clear(run)
    grid.waits(run, 2)
    grid.finish(*grid.claim(run))
    grid.ends(run, "success", 2)


def test_airflow_tries_again_by_itself_after_a_sites_fault_and_not_after_the_users(grid: Grid) -> None:
    run = grid.start("grid_retry", n=1)
    for _ in range(21):
        grid.fail(*grid.claim(run, "grid_retry"), error=SITE_FAULT)
    grid.waits(run, 2, "grid_retry")
    assert "Airflow tries again by itself in 1 s." in grid.log(run, 1, "grid_retry")
    grid.fail(*grid.claim(run, "grid_retry"), error=USER_FAULT)
    ti = grid.ends(run, "failed", 2, "grid_retry")
    assert ti["max_tries"] == 2, "one more try would have been allowed"


def test_clearing_a_succeeded_task_asks_nothing_and_runs_nothing_again(grid: Grid) -> None:
    run = grid.start(n=2)
    grid.finish(*grid.claim(run))
    grid.ends(run, "success")
    before, outputs = grid.states(run), grid.rig.client.value("grid", run, "work")
    grid.clear(run)
    grid.ends(run, "success", 2)
    assert grid.states(run) == before
    assert grid.rig.client.value("grid", run, "work") == outputs


def test_clearing_a_partial_success_runs_only_what_did_not_finish(grid: Grid) -> None:
    run = grid.start(n=3, success="50%")
    *good, bad = grid.claim(run)
    grid.finish(*good)
    grid.fail(bad)
    grid.ends(run, "success")
    assert "This task succeeds; clear it to run again what did not finish." in grid.log(run)
    before = grid.states(run)
    grid.clear(run)
    grid.waits(run, 2)
    again = grid.claim(run)
    assert [(job["panda_id"], job["attempt_nr"]) for job in again] == [(bad["panda_id"], 2)]
    grid.finish(*again)
    grid.ends(run, "success", 2)
    assert grid.states(run) == before | {bad["panda_id"]: ("finished", 2)}
    assert len(grid.rig.client.value("grid", run, "work")["outputs"]) == 3


def test_clearing_a_succeeded_task_that_says_all_runs_everything_again(grid: Grid) -> None:
    run = grid.start("grid_all", n=2)
    grid.finish(*grid.claim(run, "grid_all"))
    grid.ends(run, "success", dag_id="grid_all")
    old = set(grid.states(run, "grid_all"))
    grid.clear(run, "grid_all")
    grid.waits(run, 2, "grid_all")
    jobs = grid.claim(run, "grid_all")
    assert len(jobs) == 2
    assert not old & {job["panda_id"] for job in jobs}
    grid.finish(*jobs)
    grid.ends(run, "success", 2, "grid_all")


def test_clearing_after_the_dag_has_changed_its_jobs_runs_the_new_ones(grid: Grid) -> None:
    run = grid.start(n=2, command="wrong")
    grid.fail(*grid.claim(run))
    grid.ends(run, "failed")
    old = set(grid.states(run))
    grid.rig.sql(
        """UPDATE dag_run SET conf = jsonb_set(conf::jsonb, '{command}', '"right"')::json WHERE run_id = %s""", run
    )
    grid.clear(run)
    grid.waits(run, 2)
    jobs = grid.claim(run)
    assert [job["spec"]["argv"][-1] for job in jobs] == ["right", "right"]
    assert not old & {job["panda_id"] for job in jobs}
    grid.finish(*jobs)
    grid.ends(run, "success", 2)


def test_clearing_while_deferred_never_doubles_the_work(grid: Grid) -> None:
    """More often in test_airflow_races.py."""
    run = grid.start(n=2)
    running, _ = jobs = grid.claim(run)
    grid.rig.pilots.run(grid.dn, running)
    grid.clear(run)
    grid.waits(run, 2)
    grid.finish_what_is_left(run, jobs)
    grid.ends(run, "success", 2)
    grid.assert_never_doubled(run)


def test_clearing_while_running_never_doubles_the_work(grid: Grid, tmp_path: Path) -> None:
    run = grid.start_held("grid_held", n=2, hold_s=600, pid_file=str(tmp_path / "pid"))
    jobs = grid.claim(run, "grid_held")
    assert len(jobs) == 2
    grid.clear(run, "grid_held")
    grid.waits(run, 2, "grid_held")
    grid.finish_what_is_left(run, jobs, "grid_held")
    grid.ends(run, "success", 2, "grid_held")
    grid.assert_never_doubled(run, "grid_held")


@pytest.mark.parametrize("state", ["success", "failed"])
def test_marking_a_waiting_task_cancels_its_jobs(grid: Grid, state: str) -> None:
    run = grid.start(n=2)
    (claimed,) = grid.rig.pilots.claim(grid.dn, n=1)
    grid.watched(run)
    grid.rig.client.mark("grid", run, "work", state)
    other = next(panda_id for panda_id in grid.states(run) if panda_id != claimed["panda_id"])
    grid.rig.wait(lambda: grid.states(run)[other][0] == "cancelled", why="the waiting job's end")
    reply = grid.rig.pilots.do(grid.rig.pilots.pilot(grid.dn).good_report(claimed, "running"))
    assert reply["command"] == "tobekilled"
