"""Who may what: every route refuses strangers, and each caller everything outside its scope."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from support.dispatcher import (
    ALICE_DN,
    PILOT_DN,
    World,
    job_database,
    make_settings,
    running,
    spec,
    template_database,
    ti,
    world,
)
from support.postgres import Database, postgres

from airpanda.core.clock import utcnow
from airpanda.dispatcher.openapi import VERB
from airpanda.dispatcher.verbs import MEANINGS, Verb

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
OPEN = {("GET", "/v1/health"), ("GET", "/v1/ready")}


def routes(world: World) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for route in flat(world.app.routes):
        assert isinstance(route, APIRoute), f"{route} is no route of ours: mounts and documentation stay out"
        found.extend((method, re.sub(r"{\w+}", "1", route.path)) for method in route.methods)
    return found


def flat(found: list[BaseRoute]) -> list[BaseRoute]:
    every: list[BaseRoute] = []
    for route in found:
        inner = getattr(route, "original_router", None)
        every.extend(flat(inner.routes) if inner is not None else [route])
    return every


async def test_every_route_refuses_who_has_no_token_or_the_other_kind(job_database: Database, tmp_path: Path) -> None:
    # There are so many routes by now that one stranger may not ask all of them in a moment.
    async with running(job_database, make_settings(tmp_path, stranger_rate=0)) as world:
        await _refuses_at_every_route(world)


async def _refuses_at_every_route(world: World) -> None:
    every = routes(world)
    assert len(every) > 15
    pilot = await world.pilot()
    for method, path in every:
        if (method, path) in OPEN:
            assert (await world.http.request(method, path)).json()["status"] in ("ok", "ready")
            continue
        wrong = world.client_headers() if path.startswith("/v1/pilot/") else {"Authorization": f"Bearer {pilot.token}"}
        for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer x.y.z"}, wrong):
            response = await world.http.request(method, path, headers=headers, json={})
            assert response.status_code == 401, (method, path, headers)
            assert response.headers["content-type"] == "application/problem+json"
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert response.json()["code"] == "not-authorised"


async def test_a_read_only_token_changes_nothing_at_any_route(world: World) -> None:
    headers = world.client_headers(read_only=True, pilots=True)
    changes = 0
    for method, path in routes(world):
        if path.startswith(("/v1/pilot/", "/v1/owner/")) or (method, path) in OPEN:
            continue
        response = await world.http.request(method, path, headers=headers, json={})
        if method != "GET" and path not in ("/v1/creds/staged", "/v1/tasks/progress"):
            assert (response.status_code, "read-only" in response.json()["detail"]) == (403, True), (method, path)
            changes += 1
        elif response.status_code == 403:
            assert "may not send pilots" in response.json()["detail"], (method, path)
        else:
            assert response.status_code != 401, (method, path)
    assert changes > 15
    job = (await world.submit())["first_panda_id"]
    refused = await world.call("POST", f"/v1/job/{job}/kill", {"reason": "x"}, headers=headers)
    assert "read-only" in refused.json()["detail"]
    assert (await world.good("GET", f"/v1/job/{job}", headers=headers))["status"] == "activated"
    assert (await world.call("GET", "/v1/metrics", headers=headers)).status_code == 200


def operations(world: World) -> list[tuple[str, str, Any]]:
    """Method, a path and the verb of each operation for clients, as the OpenAPI document has them."""
    return [
        (method.upper(), re.sub(r"{\w+}", "1", path), operation[VERB])
        for path, item in world.app.openapi()["paths"].items()
        for method, operation in item.items()
        if {"clientToken": []} in operation["security"]
    ]


VERBS = {
    "/v1/bans": "admin",
    "/v1/bans/lift": "admin",
    "/v1/batch/1/cancel": "pilots",
    "/v1/batch/1/pilot/1/log": "pilots",
    "/v1/batch/1/record": "pilots",
    "/v1/batch/1/take": "pilots",
    "/v1/batch/intend": "pilots",
    "/v1/batch/known": "pilots",
    "/v1/batch/observed": "pilots",
    "/v1/creds/1/destroyed": "credentials",
    "/v1/creds/1/revoke": "credentials",
    "/v1/creds/register": "credentials",
    "/v1/creds/staged": "read",
    "/v1/factory/1/begin": "pilots",
    "/v1/factory/1/end": "pilots",
    "/v1/file/sandbox/1/1": "files",
    "/v1/file/sandbox/1/1/touch": "files",
    "/v1/job/1/debug": "debug",
    "/v1/job/1/kill": "kill",
    "/v1/job/1/retry": "retry",
    "/v1/job/submit": "submit",
    "/v1/retry_rules": "admin",
    "/v1/retry_rules/1/end": "admin",
    "/v1/shares": "admin",
    "/v1/shares/end": "admin",
    "/v1/task/1/kill": "kill",
    "/v1/task/1/retry": "retry",
    "/v1/tasks/progress": "read",
}


async def test_each_route_demands_one_verb(world: World) -> None:
    """A route that is new and says none is in no token, and fails here."""
    every = operations(world)
    assert {path: verb for method, path, verb in every if method != "GET"} == VERBS
    assert {verb for method, _, verb in every if method == "GET"} == {Verb.READ}
    assert set(VERBS.values()) == set(Verb) == set(MEANINGS)


async def test_a_token_opens_the_routes_of_its_verbs_alone(world: World) -> None:
    """With every verb but the route's it is closed, with that one alone open, whatever is said then."""
    every = operations(world)
    assert len(every) > 40
    for method, path, verb in every:
        for verbs in ((), set(Verb) - {verb}):
            headers = world.client_headers(verbs=verbs, pilots=True)
            refused = await world.http.request(method, path, headers=headers, json={})
            assert refused.status_code == 403, (method, path)
            assert refused.headers["content-type"] == "application/problem+json"
            says = refused.json()["detail"]
            has = ", ".join(sorted(verbs)) or "none that is known here"
            assert f"it needs the verb {verb}, and its token is for {has}; mint one" in says, (method, path)
        answer = await world.http.request(method, path, headers=world.client_headers(verbs={verb}), json={})
        if verb is Verb.READ and path.startswith(("/v1/batch/", "/v1/factory")):
            assert "may not send pilots" in answer.json()["detail"], path
        else:
            assert answer.status_code not in (401, 403), (method, path, answer.text)


async def test_verbs_widen_no_scope_and_none_is_everything_but_pilots(world: World) -> None:
    task = await world.submit()
    number = task["task_id"]
    kill = {"reason": "x"}
    bobs = world.client_headers(("bob",), verbs=set(Verb))
    assert (await world.call("POST", f"/v1/task/{number}/kill", kill, headers=bobs)).status_code == 404
    assert (await world.call("POST", "/v1/shares", {"kind": "vo", "name": "x"}, headers=bobs)).status_code == 403
    looks_only = world.client_headers(verbs={"kill", "read"}, read_only=True)
    assert (await world.call("POST", f"/v1/task/{number}/kill", kill, headers=looks_only)).status_code == 403
    killer = world.client_headers(("alice",), verbs={"kill"})
    assert (await world.call("GET", f"/v1/task/{number}", headers=killer)).status_code == 403
    assert (await world.call("POST", f"/v1/task/{number}/kill", kill, headers=killer)).status_code == 200
    plain = world.client_headers()
    assert (await world.call("POST", f"/v1/task/{number}/retry", headers=plain)).status_code == 200
    assert (
        await world.call("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": 1}, headers=plain)
    ).status_code == 403


async def test_expired_tokens_are_refused(world: World) -> None:
    issuer, past = world.services.issuer, utcnow() - timedelta(hours=2)
    pilot = issuer.pilot_token(1, "DEMO", timedelta(hours=1), past).reveal()
    client = issuer.client_token("x", ["*"], ["*"], timedelta(hours=1), past).reveal()
    for path, token in (("/v1/pilot/update_worker_status", pilot), ("/v1/batch/intend", client)):
        response = await world.http.post(path, json={}, headers={"Authorization": f"Bearer {token}"})
        assert (response.status_code, "expired" in response.text) == (401, True)


async def test_a_client_stays_inside_its_owners_and_queues(world: World) -> None:
    credential = await world.credential()
    task = await world.submit(credential_id=credential["credential_id"])
    batch = await world.good("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": 1})
    bob = world.client_headers(owners=("bob",), queues=("OTHER",))
    job, number = task["first_panda_id"], credential["credential_id"]
    submission = {
        "task_key": "k",
        "task_name": "t",
        "owner": "alice",
        "credential_id": number,
        "queue": "OTHER",
        "ti": ti(),
        "jobs": [spec()],
    }
    registration = {
        "owner": "alice",
        "owner_dn": ALICE_DN,
        "server": "h:1",
        "username": "u",
        "cred_name": "0" * 32,
        "passphrase": "p",
        "retriever_dn": ALICE_DN,
        "expires_at": "2100-01-01T00:00:00Z",
    }
    sender = world.client_headers(owners=("bob",), queues=("OTHER",), pilots=True)
    for method, path, body in (
        ("GET", f"/v1/batch/{batch['batch_id']}", None),
        ("POST", f"/v1/batch/{batch['batch_id']}/record", {"state": "failed", "ce": "x"}),
    ):
        assert (await world.call(method, path, body, headers=sender)).status_code == 404
    response = await world.call("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": 1}, headers=sender)
    assert (response.status_code, "queue 'DEMO'" in response.text) == (403, True)
    refused: list[tuple[str, str, Any, int]] = [
        ("GET", f"/v1/creds/{number}", None, 404),
        ("POST", f"/v1/creds/{number}/destroyed", None, 404),
        ("GET", f"/v1/job/{job}", None, 404),
        ("GET", f"/v1/job/{job}/log", None, 404),
        ("GET", f"/v1/file/{job}/out", None, 404),
        ("GET", f"/v1/task/{task['task_id']}/progress", None, 404),
        ("GET", f"/v1/task/{task['task_id']}/jobs", None, 404),
        ("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "mine"}, 404),
        ("POST", f"/v1/task/{task['task_id']}/retry", None, 404),
        ("GET", f"/v1/batch/{batch['batch_id']}", None, 403),
        ("POST", f"/v1/batch/{batch['batch_id']}/record", {"state": "failed", "ce": "x"}, 403),
        ("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": 1}, 403),
        ("POST", "/v1/job/submit", submission, 403),
        ("POST", "/v1/job/submit", submission | {"owner": "bob"}, 404),
        ("POST", "/v1/job/submit", submission | {"owner": "bob", "queue": "DEMO"}, 403),
        ("POST", "/v1/creds/register", registration, 403),
    ]
    for method, path, body, status in refused:
        response = await world.call(method, path, body, headers=bob)
        assert response.status_code == status, (method, path, response.text)
    assert await world.good("GET", "/v1/creds/audit", headers=bob) == []
    assert await world.good("GET", "/v1/creds/audit", headers=bob, params={"owner_dn": ALICE_DN}) == []
    assert (await world.job(job))["status"] == "activated"


async def test_a_pilot_stays_on_its_queue(world: World) -> None:
    await world.submit(queue="OTHER")
    demo, other = await world.pilot("DEMO"), await world.pilot("OTHER")
    offer = {"site_name": "OTHER", "node": "wn", "memory": 8000, "disk_space": 8000, "remaining_time": 7200}
    assert (await demo.post("acquire_jobs", offer)).status_code == 400
    assert await demo.acquire() == []
    moved = world.services.issuer.pilot_token(demo.pilot_id, "OTHER", timedelta(hours=1), utcnow()).reveal()
    response = await world.http.post("/v1/pilot/acquire_jobs", json=offer, headers={"Authorization": f"Bearer {moved}"})
    assert response.status_code == 403
    assert len(await other.acquire()) == 1


@pytest.mark.parametrize("status", ["benched", "finished"])
async def test_a_pilot_that_has_ended_gets_nothing(world: World, status: str) -> None:
    await world.submit()
    pilot = await world.pilot()
    await pilot.post("update_worker_status", {"status": status, "node": "wn", "reason": "a test"})
    offer = {"site_name": "DEMO", "node": "wn", "memory": 8000, "disk_space": 8000, "remaining_time": 7200}
    assert (await pilot.post("acquire_jobs", offer)).json() == {"jobs": [], "wait_s": 0, "command": "drain"}


async def test_an_offline_queue_sends_pilots_home(world: World) -> None:
    await world.submit()
    pilot = await world.pilot()
    world.queues["DEMO"] = type(world.queues["DEMO"])("DEMO", is_online=False)
    offer = {"site_name": "DEMO", "node": "wn", "memory": 8000, "disk_space": 8000, "remaining_time": 7200}
    assert (await pilot.post("acquire_jobs", offer)).json()["command"] == "drain"


async def test_no_header_stands_in_for_mutual_tls(world: World) -> None:
    await world.submit()
    pilot = await world.pilot()
    said = dict.fromkeys(("X-SSL-Client-S-DN", "X-Client-Cert", "SSL_CLIENT_S_DN", "X-Tests-Proven-Dn"), PILOT_DN)
    offer = {"site_name": "DEMO", "node": "wn", "memory": 8000, "disk_space": 8000, "remaining_time": 7200}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=world.app), base_url="http://gateway") as http:
        headers = {"Authorization": f"Bearer {pilot.token}"} | said
        assert (await http.post("/v1/pilot/acquire_jobs", json=offer, headers=headers)).status_code == 403
    assert (await world.sql("SELECT dn FROM panda_pilot"))[0]["dn"] == ""


async def test_mounted_in_another_app_it_is_as_closed(world: World) -> None:
    """As in Airflow's api-server, which mounts it at /panda and protects nothing there itself."""
    outer = FastAPI()
    outer.mount("/panda", world.app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=outer), base_url="http://api-server") as http:
        assert (await http.get("/panda/v1/health")).json()["status"] in ("ok", "ready")
        for path in ("/panda/v1/creds/audit", "/panda/v1/job/1"):
            assert (await http.get(path)).status_code == 401
            assert (await http.get(path, headers=world.client_headers())).status_code in (200, 404)
        for path in ("/panda/docs", "/panda/openapi.json", "/panda/redoc", "/panda/"):
            assert (await http.get(path)).status_code == 404
