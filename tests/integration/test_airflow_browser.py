"""A person at the real web UI, in a real browser: from the login to the log of the one job that ran again."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from support.airflow_grid import Grid, grid_fixture
from support.airflow_rig import airflow_rig, postgres
from support.browser import WebUi, chromium

from airpanda.core.secret import Secret

__all__ = ["airflow_rig", "grid_fixture", "postgres"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
CAMPAIGN = "production_campaign"


@pytest.fixture(name="ui")
def web_ui(grid: Grid, tmp_path: Path) -> Iterator[WebUi]:
    """Before anybody has signed in; pictures are kept in ``tmp_path``."""
    with chromium(tmp_path) as browser:
        yield WebUi(browser, grid.rig.url, tmp_path)


def test_a_person_runs_a_campaign_by_its_form_and_clears_what_failed(ui: WebUi, grid: Grid) -> None:
    client = grid.rig.client
    grid.rig.wait(lambda: client.knows(CAMPAIGN))
    ui.page.goto(f"/dags/{CAMPAIGN}")
    ui.sign_in("admin", Secret(secrets.token_urlsafe(12)))
    expect(ui.page.get_by_text("Invalid credentials")).to_be_visible()
    ui.picture("refused")
    ui.sign_in("admin", client.password)
    expect(ui.page.get_by_test_id("trigger-dag-button")).to_be_visible()

    form = ui.open_form(CAMPAIGN)
    for field in client.http.get(f"/api/v2/dags/{CAMPAIGN}/details").json()["params"].values():
        group = form.get_by_role("group").filter(has_text=field["schema"]["title"])
        expect(group.filter(has_text=field["description"])).to_be_visible()
    ui.enter(form, "n_jobs", "10001")
    expect(form.locator("input[name=element_n_jobs]")).to_have_value("10000")
    for name, text in {"n_jobs": "4", "owner": "alice", "events_per_job": "50", "n_pilots": "0"}.items():
        ui.enter(form, name, text)
    form.get_by_text("Merge, draw and publish").first.scroll_into_view_if_needed()
    form.locator("label", has=form.page.locator("input[name=element_validate]")).click()
    ui.picture("form")
    run = grid.adopt(CAMPAIGN, ui.trigger(form))
    wanted = {"n_jobs": 4, "owner": "alice", "events_per_job": 50, "validate": False, "queue": "DEMO"}
    ui.expect_conf(CAMPAIGN, run, wanted)

    client.wait_for(CAMPAIGN, run, "evgen", "deferred", timeout_s=240)
    jobs = grid.rig.pilots.claim(grid.dn)
    assert [job["spec"]["argv"][3] for job in jobs] == ["50"] * 4, "of the form"
    grid.finish(*jobs[:3])
    (bad,) = jobs[3:]
    for _ in range(3):  # its attempts
        grid.fail(bad, log=b"the payload's own words")
        (bad,) = grid.rig.pilots.claim(grid.dn) or (bad,)
    grid.rig.wait(lambda: client.run_state(CAMPAIGN, run) == "failed", why="the run's end")
    before = grid.states(run, CAMPAIGN, "evgen")

    ui.open_task(CAMPAIGN, run, "evgen")
    ui.expect_state("Failed")
    ui.log("1 of 4 jobs did not finish (failed 1)", "clear this task", "the payload's own words")
    ui.picture("failed")
    assert set(ui.clear()) == {"evgen", "wanted", "merging", "merge", "picture", "publish"}
    ui.expect_state("Deferred")
    ui.log("known, 1 tried again")
    ui.picture("cleared")
    (again,) = grid.rig.pilots.claim(grid.dn)
    assert (again["panda_id"], again["attempt_nr"]) == (bad["panda_id"], 4)
    grid.finish(again, log=b"better words")
    ui.expect_state("Success")
    ui.picture("success")
    assert grid.states(run, CAMPAIGN, "evgen") == before | {bad["panda_id"]: ("finished", 4)}

    assert "all 4: finished 4" in ui.follow("PanDA task")
    assert bad["spec"]["job_name"] in ui.follow("PanDA jobs")
    of_job = ui.follow("PanDA jobs", str(bad["panda_id"]))
    assert of_job.count("exe error 65, the payload exited with 1 (user's fault)") == 3, "of each failed attempt"
    assert "better words" in ui.follow("PanDA jobs", str(bad["panda_id"]), "payload")
    ui.follow("PanDA jobs", f"{CAMPAIGN} / evgen, run {run}, try 2")
    ui.expect_state("Success")  # back at the task instance, signed in as before
    client.wait_for(CAMPAIGN, run, "wanted", "success", timeout_s=240)
