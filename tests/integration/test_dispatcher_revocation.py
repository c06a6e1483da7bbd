"""Tokens taken back, and callers that send too much."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.dispatcher import World, job_database, make_settings, running, template_database, world
from support.gateway import ROOT
from support.postgres import Database, postgres

from airpanda.core.clock import utcnow

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration


async def revoke(world: World, kind: Any, name: str) -> None:
    await world.services.revocations.revoke(
        kind, name, reason="lost", by="tests", expires_at=utcnow() + timedelta(hours=1)
    )


async def status(world: World, headers: dict[str, str]) -> int:
    return (await world.http.get("/v1/jobs", headers=headers)).status_code


async def test_one_token_is_refused_and_its_sisters_are_not(world: World) -> None:
    lost, kept = world.client_headers(), world.client_headers()
    assert (await status(world, lost), await status(world, kept)) == (200, 200)
    token_id = next(each.token_id for each in world.services.issuer._seen.values())
    await revoke(world, "token", token_id)
    refused = await world.http.get("/v1/jobs", headers=lost)
    assert (refused.status_code, "revoked" in refused.json()["detail"]) == (401, True)
    assert await status(world, kept) == 200


async def test_all_tokens_of_a_client_until_then(world: World) -> None:
    old, other = world.client_headers(name="airflow"), world.client_headers(name="factory")
    await revoke(world, "client", "airflow")
    assert (await status(world, old), await status(world, other)) == (401, 200)
    later = utcnow() + timedelta(seconds=2)
    fresh = world.services.issuer.client_token("airflow", ["*"], ["*"], timedelta(hours=1), later).reveal()
    assert await status(world, {"Authorization": f"Bearer {fresh}"}) == 200


async def test_what_no_token_can_match_any_more_is_forgotten(world: World) -> None:
    await revoke(world, "client", "old")
    await world.sql("UPDATE panda_revocation SET expires_at = now() - interval '2 days'")
    await revoke(world, "client", "new")
    assert [row["name"] for row in await world.sql("SELECT name FROM panda_revocation")] == ["new"]


async def test_a_pilot_of_that_number_is_not_a_client_of_that_name(world: World) -> None:
    pilot, other = await world.pilots(2)
    await revoke(world, "client", str(pilot.pilot_id))
    await world.submit(2)
    assert await pilot.acquire()
    await revoke(world, "pilot", str(pilot.pilot_id))
    assert (await pilot.post("acquire_jobs", {})).status_code == 401
    assert await other.acquire()


async def test_another_process_hears_of_it_when_its_list_is_old(
    world: World, job_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = world.client_headers(name="airflow")
    async with running(job_database, world.settings) as second:
        assert await status(second, headers) == 200
        await revoke(world, "client", "airflow")
        assert await status(world, headers) == 401
        later = second.services.revocations._clock() + 20.5
        monkeypatch.setattr(second.services.revocations, "_clock", lambda: later)
        assert await status(second, headers) == 401


async def test_the_command_revokes_and_lists(world: World, job_database: Database, tmp_path: Path) -> None:
    headers = world.client_headers(name="airflow")
    (tmp_path / "token").write_text(headers["Authorization"].removeprefix("Bearer "))
    environment = {
        "PYTHONPATH": str(ROOT / "plugins"),
        "PATH": "/usr/bin:/bin",
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": job_database.url("postgresql+psycopg2"),
        "AIRFLOW__AIRPANDA__SIGNING_KEY": str(world.settings.signing_key),
        "AIRFLOW__AIRPANDA__FILE_STORE": str(world.settings.file_store),
        "AIRFLOW__AIRPANDA__INCLUDE_DIR": str(tmp_path),
    }

    def token(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "airpanda", "token", *arguments]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)

    done = token("revoke", "--token-file", str(tmp_path / "token"), "--reason", "laptop stolen")
    assert done.returncode == 0, done.stderr
    assert headers["Authorization"][7:] not in done.stdout + done.stderr
    assert await status(world, headers) == 401
    assert "laptop stolen" in token("revoked").stdout
    (tmp_path / "token").write_text("nonsense")
    wrong = token("revoke", "--token-file", str(tmp_path / "token"))
    assert (wrong.returncode, "nothing to revoke" in wrong.stderr) == (1, True)


async def test_who_sends_too_much_is_told_when_to_come_back(job_database: Database, tmp_path: Path) -> None:
    settings = replace(make_settings(tmp_path), client_rate=0.3, pilot_rate=0.1, stranger_rate=0.2)
    async with running(job_database, settings) as world:
        one, two = world.client_headers(), world.client_headers()
        served = 0
        while await status(world, one) == 200:  # three in a moment, and one more every three seconds
            served += 1
            assert served < 30
        assert served >= 3
        refused = await world.http.get("/v1/jobs", headers=one)
        assert refused.json()["code"] == "rate-limited"
        assert 1 <= int(refused.headers["retry-after"]) <= 4
        assert refused.headers["content-type"] == "application/problem+json"
        assert await status(world, two) == 200, "each token has its own"
        pilot = await world.pilot()
        assert [(await pilot.post("acquire_jobs", {})).status_code for _ in range(2)] == [422, 429]
        for bad in ({}, {"Authorization": "Bearer x"}):
            await status(world, bad)
        assert await status(world, {"Authorization": "Bearer y"}) == 429, "strangers share their address's"
        assert {(await world.http.get("/v1/health")).status_code for _ in range(9)} == {200}
