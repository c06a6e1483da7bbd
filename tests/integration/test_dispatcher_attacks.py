"""What one client or stranger tries to get of others: pilots' work, identities, files, keys, memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.dispatcher import (
    ALICE_DN,
    BOB_DN,
    Pilot,
    Queue,
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

from airpanda.dispatcher.limits import MAX_STRANGERS_BYTES

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


# --- identities --------------------------------------------------------------------------------------------------


async def bobs_output(world: World, access: str) -> str:
    """The source of a file of Bob's."""
    credential = await world.credential("bob", fqans=["/bobvo"])
    job = spec(outputs=[{"lfn": "secret.root", "access": access}])
    await world.submit(owner="bob", credential_id=credential["credential_id"], jobs=[job])
    pilot = await world.pilot()
    (taken,) = await pilot.acquire()
    await pilot.good_report(taken, "starting", "running")
    assert (await pilot.put(taken, "secret.root", b"bobs data")).is_success
    await pilot.good_report(taken, "finished")
    return f"panda:{taken['panda_id']}/secret.root"


@pytest.mark.parametrize(
    ("claim", "status"),
    [
        ({"owner_dn": BOB_DN}, 403),
        ({"owner_dn": "/O=Test Grid/CN=Invented"}, 403),
        ({"fqans": ["/bobvo"]}, 403),
        ({"fqans": ["/test/Role=production", "/bobvo/Role=admin"]}, 403),
        ({"owner": "bob", "owner_dn": BOB_DN}, 403),
        ({}, 201),
        ({"fqans": []}, 201),
    ],
)
async def test_a_client_cannot_make_its_owner_somebody_else(world: World, claim: Any, status: int) -> None:
    await world.credential("bob", fqans=["/bobvo"])
    await world.credential("alice")
    alice = world.client_headers(owners=ALICES, queues=("DEMO",))
    before = await world.sql("SELECT * FROM panda_owner ORDER BY name")
    answer = await world.call("POST", "/v1/creds/register", world.registration("alice") | claim, headers=alice)
    assert answer.status_code == status, answer.text
    assert BOB_DN not in answer.text.replace(str(claim.get("owner_dn")), "")
    assert await world.sql("SELECT * FROM panda_owner ORDER BY name") == before


async def test_a_client_for_some_owners_introduces_nobody(world: World) -> None:
    alice = world.client_headers(owners=ALICES)
    answer = await world.call("POST", "/v1/creds/register", world.registration("alice"), headers=alice)
    assert (answer.status_code, "must register a credential first" in answer.json()["detail"]) == (403, True)
    assert await world.sql("SELECT * FROM panda_owner") == []


@pytest.mark.parametrize(("owner", "dn"), [("alice", BOB_DN), ("alias", ALICE_DN)])
async def test_a_name_is_one_dn_and_a_dn_has_one_name(world: World, owner: str, dn: str) -> None:
    await world.credential("alice")
    answer = await world.call("POST", "/v1/creds/register", world.registration(owner, dn))
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "operators of this service release it" in answer.json()["detail"]


async def test_attributes_add_up_on_trusted_word(world: World) -> None:
    for fqans in (["/test/b"], [], ["/test/a", "/test/b"]):
        await world.credential("alice", fqans=fqans)
    assert (await world.sql("SELECT fqans FROM panda_owner"))[0]["fqans"] == '["/test/a", "/test/b"]'
    alice = world.client_headers(owners=ALICES)
    wanted = world.registration("alice") | {"fqans": ["/test/a"]}
    await world.good("POST", "/v1/creds/register", wanted, headers=alice)


async def test_an_owner_proven_by_tls_binds_itself_and_nobody_else(world: World) -> None:
    proven = {"x-tests-proven-dn": ALICE_DN}
    wrong = await world.http.post("/v1/owner/creds", json=world.registration("bob", BOB_DN), headers=proven)
    assert wrong.status_code == 403
    assert (await world.http.post("/v1/owner/creds", json=world.registration("alice"), headers=proven)).is_success
    alice = world.client_headers(owners=ALICES)
    await world.good("POST", "/v1/creds/register", world.registration("alice"), headers=alice)


@pytest.mark.parametrize("access", ["owner", "vo"])
async def test_files_of_others_stay_closed(world: World, access: str) -> None:
    source = await bobs_output(world, access)
    await world.credential("alice")
    alice = world.client_headers(owners=ALICES, queues=("DEMO",))
    credential = await world.good("POST", "/v1/creds/register", world.registration("alice"), headers=alice)
    jobs = [spec("thief", inputs=[{"lfn": "in.root", "source": source}])]
    await world.submit(credential_id=credential["credential_id"], jobs=jobs, headers=alice)
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    answer = await pilot.get_input(job, "in.root")
    assert (answer.status_code, answer.json()["code"]) == (403, "not-authorised")


async def test_only_the_services_myproxy_servers(job_database: Database, tmp_path: Path) -> None:
    settings = replace(make_settings(tmp_path), myproxy_servers=("localhost:7512",))
    async with running(job_database, settings) as world:
        await world.credential("alice", server="LocalHost:7512")
        evil = world.registration("alice") | {"server": "evil.example:7512"}
        for path, headers in (
            ("/v1/creds/register", world.client_headers()),
            ("/v1/owner/creds", {"x-tests-proven-dn": ALICE_DN}),
        ):
            answer = await world.http.post(path, json=evil, headers=headers)
            assert (answer.status_code, "myproxy_servers" in answer.json()["detail"]) == (400, True)


# --- keys --------------------------------------------------------------------------------------------------------


async def test_keys_are_each_clients_and_each_owners(world: World) -> None:
    key = "bob_dag/scheduled__2026-12-01T00:00:00+00:00/hello/-1"
    squatter = world.client_headers(name="squatter")
    theirs = await world.good("POST", "/v1/creds/register", world.registration("alice"), headers=squatter)
    squatted = await world.submit(key=key, credential_id=theirs["credential_id"], headers=squatter)
    credential = await world.credential("bob")
    for n, headers in enumerate((world.client_headers(), world.client_headers(owners=("bob",)))):
        bobs = await world.submit(owner="bob", key=key, credential_id=credential["credential_id"], headers=headers)
        assert (bobs["created"], bobs["task_id"] == squatted["task_id"]) == (n == 0, False)
    other = world.client_headers(name="factory")
    wanted = {
        "task_key": key,
        "task_name": "t",
        "owner": "alice",
        "queue": "DEMO",
        "ti": ti(),
        "credential_id": (await world.credential())["credential_id"],
    }
    await world.good("POST", "/v1/job/submit", wanted | {"jobs": [spec("one")]})
    conflict = await world.call("POST", "/v1/job/submit", wanted | {"jobs": [spec("two")]})
    assert (conflict.status_code, conflict.json()["code"]) == (409, "conflict")
    assert not [digit for digit in conflict.json()["detail"] if digit.isdigit()], "no number of any task"
    assert (await world.call("POST", "/v1/job/submit", wanted | {"jobs": [spec("two")]}, headers=other)).json()[
        "code"
    ] == "credential", "another client comes as far as consent, and learns of no key"


# --- bodies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/job/submit", "/v1/creds/register", "/v1/pilot/acquire_jobs", "/v1/owner/creds"])
@pytest.mark.parametrize("token", ["", "Bearer x.y.z", "Basic YTpi", "Bearer \xe9"])
async def test_strangers_send_little(world: World, path: str, token: str) -> None:
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b'{"jobs":['
        for _ in range(1024):
            taken += 16 * 1024
            yield b"[],[],[]" * 2048
        yield b"0]}"

    headers = [(b"content-type", b"application/json"), (b"authorization", token.encode("latin-1"))]
    answer = await world.http.post(path, content=body(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "not-authorised")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["connection"] == "close"
    assert taken <= MAX_STRANGERS_BYTES + 16 * 1024
    announced = await world.http.post(path, content=b" " * (MAX_STRANGERS_BYTES + 1), headers=headers)
    assert announced.status_code == 401


async def test_a_token_of_the_other_kind_opens_no_large_body(world: World) -> None:
    pilot = await world.pilot()
    two_mib = b" " * (2 * 1024 * 1024)
    for method, path, headers in (
        ("POST", "/v1/job/submit", pilot.headers),
        ("PUT", "/v1/pilot/file/1/1/out", world.client_headers()),
    ):
        assert (await world.http.request(method, path, content=two_mib, headers=headers)).status_code == 413
    assert (await world.call("POST", "/v1/job/submit", {"a": "x" * len(two_mib)})).status_code == 422


# --- what is shown, and numbers ----------------------------------------------------------------------------------

KEY = b"-----BEGIN RSA PRIVATE KEY-----\n" + b"MIIcanary\n" * 300 + b"-----END RSA PRIVATE KEY-----\n"


@pytest.mark.parametrize("after", [0, 1024 * 1024 - 1000])
async def test_logs_are_shown_without_commands_and_keys(job_database: Database, tmp_path: Path, after: int) -> None:
    async with running(job_database, make_settings(tmp_path, max_upload_bytes=2 * 1024 * 1024)) as world:
        await world.submit()
        pilot = await world.pilot()
        (job,) = await pilot.acquire()
        path = f"/v1/job/{job['panda_id']}/log"
        hostile = "\x1b]0;owned\x07\x1b[2J\x9b31m" + KEY.decode()
        await pilot.good_report(job, "starting")
        await pilot.good_report(job, "running", log_tail=hostile)
        tail = await world.call("GET", path)
        log = b"event 1\n\x1b]0;owned\x07\x1b[2J" + KEY + b"x" * after + b"\nevent 2\n"
        assert (await pilot.put(job, "payload.log", log)).is_success
        whole = await world.call("GET", path)
    assert whole.text.endswith("\nevent 2\n")
    for shown in (tail.text, whole.text):
        assert not {"\x1b", "\x07", "\x9b"} & set(shown)
        assert "canary" not in shown


async def test_a_source_with_a_number_that_is_none(world: World) -> None:
    credential = await world.credential()
    for number in ("9" * 19, "9" * 5000, ""):
        job = spec(inputs=[{"lfn": "in", "source": f"panda:{number}/out"}])
        wanted = {"task_key": "k", "task_name": "t", "owner": "alice", "queue": "DEMO", "ti": ti(), "jobs": [job]}
        answer = await world.call("POST", "/v1/job/submit", wanted | {"credential_id": credential["credential_id"]})
        assert answer.status_code == 422
    await world.submit(jobs=[spec(inputs=[{"lfn": "in", "source": f"panda:{'9' * 18}/out"}])])
    pilot = await world.pilot()
    (taken,) = await pilot.acquire()
    assert (await pilot.get_input(taken, "in")).status_code == 404
