"""Bad input, secrets in refusals, and a database that goes away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.dispatcher import Pilot, World, job_database, make_settings, running, spec, template_database, ti, world
from support.postgres import Database, empty_database, postgres

from airpanda.db.models import metadata
from airpanda_demo.postgres import PrivatePostgres

__all__ = ["empty_database", "job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[PrivatePostgres]:
    with PrivatePostgres(tmp_path / "pg", durable=False) as server:
        engine = sa.create_engine(server.url())
        metadata.create_all(engine)
        engine.dispose()
        yield server


async def test_a_database_that_goes_away_is_said_to_be_away_and_loses_nothing(
    own_server: PrivatePostgres, tmp_path: Path
) -> None:
    async with running(Database(own_server, "airflow"), make_settings(tmp_path), watchdog=True) as world:
        task = await world.submit(20)
        pilot = await world.pilot()
        held = await pilot.acquire(n_jobs=5)
        own_server.crash()
        for _ in range(3):
            away = await pilot.report(held[0], "starting")
            assert (away.status_code, away.json()["code"]) == (503, "service")
            assert int(away.headers["retry-after"]) >= 1
        own_server.start()
        for job in held:
            await pilot.good_report(job, "starting", "running", "finished")

        own_server.restart()  # idle connections are cut
        await asyncio.sleep(0.2)  # the restart held this event loop, which must see the cuts first
        rest = await pilot.acquire(n_jobs=20)
        assert len(rest) == 15
        for job in rest:
            await pilot.good_report(job, "starting", "running", "finished")
        progress = await world.good("GET", f"/v1/task/{task['task_id']}/progress")
        assert progress["counts"] == {"finished": 20}


async def test_a_start_without_a_database_recovers(tmp_path: Path) -> None:
    with PrivatePostgres(tmp_path / "pg", durable=False) as server:
        database = Database(server, "airflow")
        url = database.url()
    assert url
    async with running(database, make_settings(tmp_path), watchdog=True) as world:
        away = await world.call("GET", "/v1/job/1")
        assert (away.status_code, away.json()["code"]) == (503, "service")
        assert (await world.http.get("/v1/health")).status_code == 200


async def test_missing_tables_name_the_command_for_the_operator(
    empty_database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(empty_database, make_settings(tmp_path)) as world:
        response = await world.call("GET", "/v1/job/1")
    assert (response.status_code, response.json()["code"]) == (500, "configuration")
    assert "airflow db migrate" in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b'{"site_name": "DE\\u0000MO", "node": "x", "memory": 1, "disk_space": 1, "remaining_time": 1}',
        b'{"site_name": "DEMO", "node": "a\\u0000b", "memory": 1, "disk_space": 1, "remaining_time": 1}',
        b'{"site_name": "DEMO", "node": "x", "memory": 1e400, "disk_space": 1, "remaining_time": 1}',
        b'{"site_name": "DEMO", "node": "x", "memory": 99999999999999999999, "disk_space": 1, "remaining_time": 1}',
        b'{"site_name": "DEMO", "node": "\\ud800", "memory": 1, "disk_space": 1, "remaining_time": 1}',
        b'{"site_name": "DEMO", "node": "x", "memory": true, "disk_space": 1, "remaining_time": 1}',
        b'{"site_name": "DEMO", "node": "x", "memory": 1, "disk_space": 1, "remaining_time": 1, "extra": 1}',
        b'{"site_name": "DEMO", "node": "x", "memory": 1, "disk_space": 1, "remaining_time": 1, "n_jobs": 0}',
    ],
)
async def test_nonsense_is_the_callers_error(world: World, body: bytes) -> None:
    pilot = await world.pilot()
    headers = pilot.headers | {"Content-Type": "application/json"}
    response = await world.http.post("/v1/pilot/acquire_jobs", content=body, headers=headers)
    assert response.status_code in (400, 413, 422), response.text
    assert response.headers["content-type"] == "application/problem+json"


END = {"fence": 1, "memory": {}, "decisions": []}
OFFER = {"site_name": "DEMO", "node": "n", "cores": 8, "memory": 16000, "disk_space": 16000, "remaining_time": 86400}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/factory/%00", None),
        ("POST", "/v1/factory/%00/end", END),
        ("POST", "/v1/factory/DEMO/end", END | {"memory": {"x": "\ud800"}}),
        ("POST", "/v1/creds/staged", {"owner_dn": "/CN=\0"}),
        ("POST", "/v1/pilot/update_worker_status", {"status": "started", "node": "n", "probe": {"x": "\ud800"}}),
        ("POST", "/v1/pilot/acquire_jobs", OFFER | {"avoid_owners": ["/CN=\0"]}),
    ],
)
async def test_what_postgresql_cannot_keep_is_the_callers_error(
    world: World, method: str, path: str, body: dict[str, Any] | None
) -> None:
    pilot = await world.pilot()
    headers = pilot.headers if "/pilot/" in path else world.client_headers(pilots=True)
    content = None if body is None else json.dumps(body)  # halves of characters, too
    answer = await world.http.request(
        method, path, content=content, headers=headers | {"Content-Type": "application/json"}
    )
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.status_code not in (401, 403, 405), "it is the content that is refused"


async def test_bodies_over_the_limit_are_refused(world: World) -> None:
    pilot = await world.pilot()
    response = await world.http.post("/v1/pilot/update_job", content=b" " * 2_000_000, headers=pilot.headers)
    assert response.status_code == 413
    assert response.json()["code"] == "too-large"


async def test_a_body_that_stops_coming_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airpanda.dispatcher.limits.BODY_TIMEOUT_S", 0.05)
    never = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    pilot = await world.pilot()
    response = await world.http.post("/v1/pilot/update_job", content=stuck(), headers=pilot.headers)
    assert response.status_code == 408
    assert response.headers["connection"] == "close"


async def test_a_body_that_trickles_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airpanda.dispatcher.limits.BODY_TIMEOUT_S", 0.2)
    sent = 0

    async def trickle() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            yield b" "
            sent += 1
            await asyncio.sleep(0.02)

    pilot = await world.pilot()
    response = await world.http.post("/v1/pilot/update_job", content=trickle(), headers=pilot.headers)
    assert (response.status_code, response.json()["code"]) == (408, "too-slow")
    assert sent > 1


@pytest.mark.parametrize("path", ["/v1/job/0", "/v1/job/-1", "/v1/job/99999999999999999999", "/v1/job/x", "/nowhere"])
async def test_numbers_that_are_none(world: World, path: str) -> None:
    response = await world.call("GET", path)
    assert response.status_code in (404, 422)
    assert response.headers["content-type"] == "application/problem+json"


async def test_no_secret_is_shown(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in answers but the one that hands it over, nor in logs, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    passphrase = "canary-passphrase-of-alice"
    credential = await world.credential(passphrase=passphrase)
    assert passphrase not in json.dumps(credential)
    shown: list[str] = []
    for change in (
        {"passphrase": [passphrase]},
        {"expires_at": "2001-01-01T00:00:00Z"},
        {"expires_at": passphrase},
        {"surplus": passphrase},
        {"cred_name": credential["cred_name"], "username": credential["username"]},
    ):
        wanted = {
            "owner": "alice",
            "owner_dn": "/O=Test Grid/CN=Alice Analyst",
            "server": "localhost:7512",
            "username": "u",
            "cred_name": "0" * 32,
            "passphrase": passphrase,
            "retriever_dn": "/O=Test Grid/CN=P",
            "expires_at": "2100-01-01T00:00:00Z",
        } | change
        response = await world.call("POST", "/v1/creds/register", wanted)
        assert response.status_code in (409, 422)
        shown.append(response.text)

    await world.submit(credential_id=credential["credential_id"])
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    secrets = [passphrase, pilot.token, job["token"]]
    for token in ("x" * 5000, job["token"] + "x"):
        shown.append((await pilot.report(job | {"token": token}, "starting")).text)
    shown.append((await pilot.report(job, "nonsense")).text)
    shown.append((await pilot.put(job, "nothing", b"x")).text)
    shown.append(json.dumps(await world.job(job["panda_id"])))
    shown.append(json.dumps(await world.good("GET", "/v1/creds/audit")))
    # The lease token and the key of the passphrase are gone from the database as they are.
    for table in metadata.tables:
        shown.append(str([dict(row) for row in await world.sql(f"SELECT * FROM {table}")]))
    shown.append(caplog.text)
    for secret in secrets:
        assert not [text for text in shown if secret in text]


async def test_a_rotated_away_key_releases_nothing_and_names_who_must_act(
    job_database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(job_database, make_settings(tmp_path)) as world:
        lost = await world.credential(passphrase="canary-passphrase-of-alice")
        task = await world.submit(credential_id=lost["credential_id"], key="k")
        pilot = await world.pilot()
    async with running(job_database, world.settings) as rotated:  # other Fernet keys, the same signing key
        fresh = await rotated.submit()
        there = Pilot(rotated, pilot.pilot_id, pilot.token, "DEMO")
        # One job of the past must not stop the others.
        assert [job["panda_id"] for job in await there.acquire(n_jobs=5)] == [fresh["first_panda_id"]]
        assert (await rotated.job(task["first_panda_id"]))["status"] == "activated"
        body = {"task_key": "another", "task_name": "t", "owner": "alice", "queue": "DEMO", "jobs": [spec()]}
        refused = await rotated.call(
            "POST", "/v1/job/submit", body | {"credential_id": lost["credential_id"], "ti": ti()}
        )
        assert (refused.status_code, refused.json()["code"]) == (409, "credential")
        assert "operators of this service must put that key back" in refused.json()["detail"]
        assert await rotated.services.upkeep.close_without_credential() == 1
        reason = (await rotated.job(task["first_panda_id"]))["reason"]
        assert "sealed with a Fernet key that is configured no more" in reason
        actions = [row["action"] for row in await rotated.good("GET", "/v1/creds/audit")]
        assert actions.count("released") == 1
    assert "canary-passphrase" not in refused.text + reason + caplog.text


async def test_the_watchdog_outlives_a_failing_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from airpanda.dispatcher.watchdog import watch

    rounds = 0

    async def expire() -> list[int]:
        nonlocal rounds
        rounds += 1
        raise RuntimeError("a programming error")

    monkeypatch.setattr(world.services.upkeep, "expire", expire)
    task = asyncio.create_task(watch(world.services.upkeep, world.services.credentials, period_s=0.001))
    while rounds < 3:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
