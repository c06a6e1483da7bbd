"""People signed in to Airflow at the dispatcher: what they may see, and that a no of Airflow's is a no."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from support.dispatcher import World, job_database, template_database, ti, world
from support.postgres import postgres

from airpanda.dispatcher.pages import POLICY
from airpanda.dispatcher.people import ShowPeople

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
HTML = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}


@dataclass
class Signed:
    """As whom the next request comes, and which DAGs that person may read."""

    who: str | None = "carol"
    dags: frozenset[str] = frozenset({"a_dag"})

    async def name(self, scope: Any) -> str | None:
        return self.who

    async def may_read_logs(self, scope: Any, dag_id: str) -> bool:
        return dag_id in self.dags


@pytest.fixture
def signed() -> Signed:
    return Signed()


def browser(world: World, signed: Signed) -> httpx.AsyncClient:
    app = ShowPeople(world.app, database=world.services.database, people=signed)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://airflow")


async def test_a_person_sees_jobs_of_the_dags_whose_logs_may_be_read(world: World, signed: Signed) -> None:
    mine = await world.submit(1)
    other = await world.submit(1, ti=ti(dag_id="secret_dag"))
    async with browser(world, signed) as http:
        for number, status in ((mine["first_panda_id"], 200), (other["first_panda_id"], 401)):
            assert (await http.get(f"/v1/job/{number}")).status_code == status
        for number, status in ((mine["task_id"], 200), (other["task_id"], 401)):
            for path in (f"/v1/task/{number}", f"/v1/task/{number}/jobs", f"/v1/task/{number}/progress"):
                assert (await http.get(path)).status_code == status, path
        shown = await http.get(f"/v1/job/{mine['first_panda_id']}")
    assert shown.headers["content-security-policy"] == "sandbox; default-src 'none'"


async def test_a_person_reads_the_logs_of_pilots_that_a_task_of_such_a_dag_has_sent(
    world: World, signed: Signed
) -> None:
    """What the link "Pilots" leads to; not the pilots of other DAGs, not the factory's, and nothing else of them."""
    sent = {}
    for dag in ("a_dag", "secret_dag", None):
        intent = {"queue": "DEMO", "n_pilots": 1, "key": str(dag)} | ({"ti": ti(dag_id=dag)} if dag else {})
        batch = await world.good("POST", "/v1/batch/intend", intent)
        number, (pilot,) = batch["batch_id"], batch["pilots"]
        path = f"/v1/batch/{number}/pilot/{pilot['pilot_id']}/log"
        assert (await world.call("POST", path, {"text": f"log of {dag}"})).status_code == 204
        sent[dag] = number
    async with browser(world, signed) as http:
        shown = await http.get(f"/v1/batch/{sent['a_dag']}/logs")
        assert shown.status_code == 200
        assert "log of a_dag" in shown.text
        assert shown.headers["content-security-policy"] == "sandbox; default-src 'none'"
        for number in (sent["secret_dag"], sent[None], 10**9):
            assert (await http.get(f"/v1/batch/{number}/logs")).status_code == 401
        assert (await http.get(f"/v1/batch/{sent['a_dag']}")).status_code == 401
        assert (await http.post(f"/v1/batch/{sent['a_dag']}/cancel", json={"reason": "x"})).status_code == 401
    async with browser(world, Signed(None)) as http:
        assert (await http.get(f"/v1/batch/{sent['a_dag']}/logs")).status_code == 401


@pytest.mark.parametrize(("who", "dags"), [(None, {"a_dag"}), ("carol", set()), ("carol", {"A_DAG"})])
async def test_without_airflows_yes_nothing_is_shown(world: World, who: str | None, dags: set[str]) -> None:
    number = (await world.submit(1))["first_panda_id"]
    async with browser(world, Signed(who, frozenset(dags))) as http:
        assert (await http.get(f"/v1/job/{number}")).status_code == 401


async def test_a_person_changes_nothing_and_lists_nothing(world: World, signed: Signed) -> None:
    made = await world.submit(1)
    number, task = made["first_panda_id"], made["task_id"]
    async with browser(world, signed) as http:
        for route in world.app.routes:
            for method in getattr(route, "methods", None) or ():
                path = getattr(route, "path", "")
                path = path.replace("{panda_id}", str(number)).replace("{task_id}", str(task))
                allowed = method in ("GET", "HEAD") and path.startswith(
                    (f"/v1/job/{number}", f"/v1/task/{task}", "/v1/file/")
                )
                if allowed or path in ("/v1/health", "/v1/ready") or "{" in path:
                    continue
                answer = await http.request(method, path, json={})
                assert answer.status_code in (401, 405), f"{method} {path}: {answer.status_code}"
    assert (await world.job(number))["status"] == "activated"


async def test_a_token_is_never_helped_by_a_session(world: World, signed: Signed) -> None:
    number = (await world.submit(1))["first_panda_id"]
    bob = world.client_headers(owners=("bob",))
    async with browser(world, signed) as http:
        assert (await http.get(f"/v1/job/{number}", headers=bob)).status_code == 404
        assert (await http.get(f"/v1/job/{number}", headers={"Authorization": ""})).status_code == 401


async def test_what_only_looks_like_a_page_for_people_is_none(world: World, signed: Signed) -> None:
    number = (await world.submit(1))["first_panda_id"]
    async with browser(world, signed) as http:
        for path in (
            f"/v1/job/0{number}",
            f"/v1/job/{number}/debug",
            "/v1/job/9999999999999999999",
            f"/x/v1/job/{number}",
        ):
            assert (await http.get(path)).status_code in (401, 404), path


async def test_a_browser_gets_pages_and_whoever_asks_for_none_gets_json(world: World, signed: Signed) -> None:
    made = await world.submit(2)
    number, task = made["first_panda_id"], made["task_id"]
    async with browser(world, signed) as http:
        for path, title in (
            (f"/v1/task/{task}", f"Panda task {task}"),
            (f"/v1/task/{task}/jobs", f"Jobs of panda task {task}, from number 1"),
            (f"/v1/job/{number}", f"PandaID {number}"),
        ):
            page = await http.get(path, headers=HTML)
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert page.headers["content-security-policy"] == POLICY
            assert f"<h1>{title}" in page.text
            assert (await http.get(path)).headers["content-type"] == "application/json"
        rest = await http.get(f"/v1/task/{task}/jobs?offset=1&limit=1", headers=HTML)
        assert "from number 2" in rest.text
        for path in (f"/v1/task/{task}", f"/v1/job/{number}"):  # have no offset
            assert "<h1>" in (await http.get(f"{path}?offset=x", headers=HTML)).text
        for path, status in ((f"/v1/job/{number}/samples", 200), (f"/v1/task/{task}/jobs?offset=x", 422)):
            answer = await http.get(path, headers=HTML)
            assert answer.status_code == status
            assert "json" in answer.headers["content-type"]
            assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
        signed.dags = frozenset()
        assert (await http.get(f"/v1/job/{number}", headers=HTML)).status_code == 401
