"""Metrics and readiness: counted truly, told to operators only, and nothing in them that a caller sent."""

from __future__ import annotations

import secrets

import pytest
from support.dispatcher import World, job_database, make_settings, running, template_database, world
from support.postgres import Database, Server, postgres

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration


async def metrics(world: World) -> str:
    response = await world.call("GET", "/v1/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return response.text


async def test_requests_and_jobs_are_counted(world: World) -> None:
    await world.submit(3)
    pilot = await world.pilot()
    for _ in range(2):
        for job in await pilot.acquire(n_jobs=2):
            await pilot.good_report(job, "starting")
    await world.call("GET", "/v1/job/999999")
    text = await metrics(world)
    assert 'airpanda_jobs_given_total{queue="DEMO"} 3.0' in text
    assert 'airpanda_requests_total{method="POST",route="/v1/pilot/update_job",status="200"} 3.0' in text
    assert 'airpanda_requests_total{method="GET",route="/v1/job/{panda_id}",status="404"} 1.0' in text
    assert 'airpanda_request_seconds_count{route="/v1/pilot/acquire_jobs"} 2.0' in text


async def test_nothing_that_a_caller_sent_is_in_them(world: World) -> None:
    canary = f"canary{secrets.token_hex(8)}"
    for path in (f"/v1/{canary}", f"/v1/pilot/{canary}", f"/v1/jobs?owner={canary}", f"/v1/file/1/{canary}"):
        for method in ("GET", "POST", "CANARY"):
            await world.call(method, path, headers=world.client_headers(name=canary))
    assert "canary" not in (await metrics(world)).lower()


async def test_only_clients_for_all_owners_read_them(world: World) -> None:
    narrow = world.client_headers(owners=("alice",))
    assert (await world.call("GET", "/v1/metrics", headers=narrow)).status_code == 403
    assert (await world.http.get("/v1/metrics")).status_code == 401


async def test_ready_is_more_than_alive(world: World) -> None:
    assert (await world.http.get("/v1/ready")).json() == {"status": "ready"}
    world.app.state.draining = True
    response = await world.http.get("/v1/ready")
    assert (response.status_code, response.json()["code"]) == (503, "service")
    assert (await world.http.get("/v1/health")).json() == {"status": "ok"}


async def test_not_ready_without_its_tables_or_its_database(
    postgres: Server, job_database: Database, tmp_path: object
) -> None:
    from pathlib import Path

    settings = make_settings(Path(str(tmp_path)))
    empty = Database(postgres, postgres.create_database(f"t_{secrets.token_hex(6)}"))
    async with running(empty, settings) as world:
        assert (await world.http.get("/v1/ready")).status_code == 500
        postgres.drop_database(empty.name)
        assert (await world.http.get("/v1/ready")).status_code in (500, 503)
        assert (await world.http.get("/v1/health")).status_code == 200
