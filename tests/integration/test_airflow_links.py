"""Links of a task instance, as the person signed in to Airflow follows them; and what nobody else sees."""

from __future__ import annotations

import httpx
import pytest
from support.airflow_grid import Grid, grid_fixture
from support.airflow_rig import airflow_rig, postgres

__all__ = ["airflow_rig", "grid_fixture", "postgres"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]


def session(grid: Grid) -> httpx.Client:
    """The browser of whoever is signed in: the session cookie, no token."""
    token = grid.rig.client.http.headers["Authorization"].removeprefix("Bearer ")
    return httpx.Client(base_url=grid.rig.url, cookies={"_token": token}, trust_env=False, timeout=90)


def test_whoever_may_read_the_tasks_log_follows_its_links_and_nobody_else_does(grid: Grid) -> None:
    run = grid.start(n=2)
    one, two = grid.claim(run)
    grid.finish(one, log=b"good")
    grid.fail(two, log=b"the payload's own words")
    grid.ends(run, "failed")
    links = grid.rig.wait(lambda: {k: v for k, v in grid.rig.client.links("grid", run, "work").items() if v})
    assert set(links) == {"PanDA task", "PanDA jobs", "Payload log", "Pilot log"}
    with session(grid) as person:
        jobs = person.get(links["PanDA jobs"])
        assert [job["status"] for job in jobs.json()] == ["finished", "failed"]
        assert person.get(links["PanDA task"]).json()["counts"] == {"finished": 1, "failed": 1}
        log = person.get(links["Payload log"])
        assert log.text == "the payload's own words", "of the job that failed"
        assert log.headers["content-security-policy"] == "sandbox; default-src 'none'"
        file = person.get(f"/panda/v1/file/{one['panda_id']}/out-0")
        assert file.content == b"made by a stand-in"
        assert file.headers["content-disposition"].startswith("attachment")

        # Deny by default: nothing else, nothing that changes anything, no other numbers.
        for path in ("/v1/jobs", "/v1/tasks", "/v1/creds/audit?owner_dn=/CN=x", "/v1/bans", f"/v1/job/{10**9}"):
            assert person.get(f"/panda{path}").status_code == 401, path
        for path in (f"/v1/job/{one['panda_id']}/kill", f"/v1/task/{jobs.json()[0]['task_id']}/retry"):
            assert person.post(f"/panda{path}", json={"reason": ""}).status_code == 401, path
        forged = {"Authorization": "Bearer " + person.cookies["_token"]}
        assert person.get(links["PanDA jobs"], headers=forged).status_code == 401
    with httpx.Client(base_url=grid.rig.url, trust_env=False, timeout=90) as stranger:
        for cookies in ({}, {"_token": "forged"}):
            stranger.cookies = httpx.Cookies(cookies)
            assert {stranger.get(link).status_code for link in links.values()} == {401}
