"""What one client or stranger tries to get of others: pilots' work, identities, files, keys, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.dispatcher import (
    Pilot,
    Queue,
    World,
    job_database,
    make_settings,
    running,
    spec,
    template_database,
    world,
)
from support.postgres import Database, postgres

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
ALICES = ("alice",)
BATCH = {"queue": "DEMO", "n_pilots": 1}
OFFER = {"site_name": "DEMO", "node": "evil", "memory": 8000, "disk_space": 8000, "remaining_time": 7200}


async def bobs_job(world: World, **changes: Any) -> dict[str, Any]:
    credential = await world.credential("bob", passphrase="canary-passphrase-of-bob")
    return await world.submit(owner="bob", credential_id=credential["credential_id"], jobs=[spec(**changes)])


# --- pilots ------------------------------------------------------------------------------------------------------


async def test_a_client_without_the_right_sends_no_pilots(world: World) -> None:
    for scope in (ALICES, ("*",)):
        alice = world.client_headers(owners=scope, queues=("DEMO",))
        for method, path, body in (
            ("POST", "/v1/batch/intend", BATCH),
            ("POST", "/v1/batch/1/record", {"state": "failed", "ce": "x"}),
            ("GET", "/v1/batch/1", None),
        ):
            refused = await world.call(method, path, body, headers=alice)
            assert (refused.status_code, refused.json()["code"]) == (403, "not-authorised")
            assert "may not send pilots" in refused.json()["detail"]
    assert await world.sql("SELECT * FROM panda_pilot") == []


@pytest.mark.parametrize("dn", ["", "/O=Test Grid/CN=Alice Analyst"])
async def test_a_pilot_token_alone_opens_no_passphrase(world: World, dn: str) -> None:
    task = await bobs_job(world)
    alice = world.client_headers(owners=ALICES, queues=("DEMO",), pilots=True)
    batch = await world.good("POST", "/v1/batch/intend", BATCH, headers=alice)
    pilot = Pilot(world, batch["pilots"][0]["pilot_id"], batch["pilots"][0]["token"], "DEMO", dn=dn)
    answer = await pilot.post("acquire_jobs", OFFER)
    if dn:
        assert answer.json()["jobs"] == []
    else:
        assert (answer.status_code, "showed no proxy" in answer.json()["detail"]) == (403, True)
    assert "canary" not in answer.text
    assert (await world.job(task["first_panda_id"]))["status"] == "activated"
    assert "released" not in [row["action"] for row in await world.good("GET", "/v1/creds/audit")]


async def test_a_queue_may_serve_tokens_alone_where_its_file_says_so(world: World) -> None:
    task = await bobs_job(world)
    world.queues["DEMO"] = Queue("DEMO", token_only=True)
    (ticket,) = (await world.good("POST", "/v1/batch/intend", BATCH))["pilots"]
    stranger = Pilot(world, ticket["pilot_id"], ticket["token"], "DEMO", dn="/O=Test Grid/CN=Mallory")
    assert await stranger.acquire() == [], "who shows a proxy is held to it"
    unproven = Pilot(world, ticket["pilot_id"], ticket["token"], "DEMO", dn="")
    assert [job["panda_id"] for job in await unproven.acquire()] == [task["first_panda_id"]]


async def test_the_api_server_serves_no_pilots(job_database: Database, tmp_path: Path) -> None:
    async with running(job_database, make_settings(tmp_path), pilots=False) as world:
        await bobs_job(world)
        pilot = await world.pilot()
        for headers in (pilot.headers, {}):
            for method, path in (
                ("POST", "/v1/pilot/acquire_jobs"),
                ("POST", "/v1/pilot/update_job"),
                ("PUT", "/v1/pilot/file/1/1/out"),
                ("GET", "/v1/pilot/input/1/1/in"),
            ):
                answer = await world.http.request(method, path, headers=headers, json=OFFER)
                assert (answer.status_code, "a gateway" in answer.json()["detail"]) == (404, True)
        assert (await world.http.get("/v1/health")).status_code == 200


async def test_batches_are_their_senders(world: World) -> None:
    headers = {
        name: world.client_headers(queues=("DEMO",), name=name, pilots=True) for name in ("factory", "neighbour")
    }
    batch = await world.good("POST", "/v1/batch/intend", BATCH, headers=headers["factory"])
    path, record = f"/v1/batch/{batch['batch_id']}", {"state": "failed", "ce": "x", "reason": "evil"}
    assert (await world.call("POST", f"{path}/record", record, headers=headers["neighbour"])).status_code == 404
    assert (await world.call("GET", path, headers=headers["neighbour"])).status_code == 404
    for view in (await world.good("GET", path, headers=headers["factory"]), await world.good("GET", path)):
        assert [pilot["state"] for pilot in view["pilots"]] == ["intended"]
    ticket = batch["pilots"][0]
    pilot = Pilot(world, ticket["pilot_id"], ticket["token"], "DEMO")
    assert (await pilot.post("update_worker_status", {"node": "n", "status": "started"})).json() == {"command": ""}
