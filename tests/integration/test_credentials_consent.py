"""Consent, scope, bans and revocation: asked at submission, and again at every dispatch."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from support.dispatcher import (
    ALICE_DN,
    BOB_DN,
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

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.errors import RequestError
from airpanda.core.secret import Secret
from airpanda.messages import ConsentEnd, ConsentGrant

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration


def headers(world: World, name: str, owners: tuple[str, ...] = ("*",)) -> dict[str, str]:
    token = world.services.issuer.client_token(name, owners, ["*"], timedelta(hours=1), utcnow())
    return {"Authorization": f"Bearer {token.reveal()}"}


async def submit(world: World, credential_id: int, *, client: str = "tests", **changes: Any) -> Any:
    body = {
        "task_key": changes.pop("key", "k"),
        "task_name": "t",
        "owner": "alice",
        "credential_id": credential_id,
        "queue": "DEMO",
        "ti": ti(),
        "jobs": [spec()],
    } | changes
    return await world.call("POST", "/v1/job/submit", body, headers=headers(world, client))


async def give(world: World, client: str, **changes: Any) -> None:
    wanted: dict[str, Any] = {"client": client, "queues": ["*"], "until": utcnow() + timedelta(hours=1)} | changes
    await world.services.consents.give(ConsentGrant(**wanted), owner_dn=ALICE_DN, now=utcnow())


async def refused(response: Any, says: str, code: str = "credential") -> None:
    assert (response.status_code, response.json()["code"]) == (409, code), response.text
    assert says in response.json()["detail"]


async def actions(world: World, dn: str = ALICE_DN) -> list[str]:
    rows = await world.good("GET", "/v1/creds/audit", params={"owner_dn": dn, "limit": 1000})
    return [row["action"] for row in reversed(rows)]


# --- consent ---------------------------------------------------------------------------------------------------------


async def test_without_consent_nobody_submits_and_the_refusal_is_logged(world: World) -> None:
    number = (await world.credential(consent=None))["credential_id"]
    await refused(await submit(world, number), "has not consented to client 'tests'")
    assert await actions(world) == ["staged", "refused"]
    assert await world.sql("SELECT FROM panda_task") == []


async def test_consent_of_a_registration_is_for_that_client_and_that_credential_only(world: World) -> None:
    mine = (await world.credential(consent={"queues": ["DEMO"]}))["credential_id"]
    other = (await world.credential(consent=None))["credential_id"]
    assert (await submit(world, mine)).is_success
    await refused(await submit(world, mine, client="another", key="2"), "'another'")
    await refused(await submit(world, other, key="3"), f"credential {other}")
    await refused(await submit(world, mine, queue="OTHER", key="4"), "'OTHER'")


async def test_a_consent_is_for_its_client_queues_and_time(world: World) -> None:
    number = (await world.credential(consent=None, scope="user"))["credential_id"]
    await give(world, "tests", queues=["DEMO"])
    assert (await submit(world, number, key="1")).is_success
    await refused(await submit(world, number, key="2", queue="OTHER"), "'OTHER'")
    await refused(await submit(world, number, key="3", client="tests2"), "'tests2'")
    await world.sql("UPDATE panda_consent SET until = now() - interval '1 s'")
    await refused(await submit(world, number, key="4"), "or no longer")


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM panda_consent",
        "UPDATE panda_consent SET until = now() - interval '1 s'",
        "UPDATE panda_consent SET queues = '[\"OTHER\"]'",
        "UPDATE panda_consent SET client = 'another'",
        "UPDATE panda_consent SET owner_dn = '/O=Test Grid/CN=Bob Analyst'",
        "UPDATE panda_consent SET credential_id = credential_id + 1",
    ],
)
async def test_what_ends_a_consent_holds_at_the_next_dispatch(world: World, change: str) -> None:
    task = await world.submit()
    pilot = await world.pilot()
    await world.sql(change)
    assert await pilot.acquire() == []
    assert (await world.job(task["first_panda_id"]))["status"] == "activated"
    assert await world.services.upkeep.close_without_credential() == 1
    job = await world.job(task["first_panda_id"])
    assert job["status"] == "closed"
    assert "consent" in job["reason"]
    assert "released" not in await actions(world)


async def test_taking_back_and_giving_again(world: World) -> None:
    number = (await world.credential(consent=None))["credential_id"]
    await give(world, "tests")
    task = (await submit(world, number)).json()
    consents = world.services.consents
    assert [each.client for each in await consents.of(ALICE_DN)] == ["tests"]
    ended = await consents.end(ConsentEnd(client="tests"), owner_dn=ALICE_DN, actor=f"owner:{ALICE_DN}")
    assert len(ended) == 1
    assert await consents.end(ConsentEnd(), owner_dn=ALICE_DN, actor="x") == []
    assert await world.services.upkeep.close_without_credential() == 1
    await give(world, "tests")
    await world.good("POST", f"/v1/task/{task['task_id']}/retry")
    assert len(await (await world.pilot()).acquire()) == 1
    assert await actions(world) == ["staged", "consented", "revoked", "consented", "released"]


async def test_an_end_names_what_it_ends(world: World) -> None:
    number = (await world.credential(consent=None))["credential_id"]
    consents = world.services.consents
    for client in ("a", "b"):
        await give(world, client)
        await give(world, client, credential_id=number)
    ended = await consents.end(ConsentEnd(client="a", credential_id=number), owner_dn=ALICE_DN, actor="x")
    assert [(each.client, each.credential_id) for each in ended] == [("a", number)]
    assert await consents.end(ConsentEnd(), owner_dn=BOB_DN, actor="x") == []
    left = {(each.client, each.credential_id) for each in await consents.of(ALICE_DN)}
    assert left == {("a", None), ("b", None), ("b", number)}


async def test_what_holds_is_shown_before_a_thousand_that_have_ended(world: World) -> None:
    await world.sql(
        "INSERT INTO panda_consent (owner_dn, client, credential_id, queues, until, given_by)"
        " SELECT $1, 'a', n, '[\"*\"]', now() - interval '1 h', 'x' FROM generate_series(1, 1000) AS n",
        ALICE_DN,
    )
    await give(world, "tests")
    shown = await world.services.consents.of(ALICE_DN)
    assert (len(shown), shown[0].client) == (1000, "tests")


async def test_the_newest_ban_is_shown_before_a_thousand_others(world: World) -> None:
    await world.sql(
        "INSERT INTO panda_ban (kind, name, reason, banned_by)"
        " SELECT 'dn', '/CN=' || n, 'r', 'x' FROM generate_series(1, 1000) AS n"
    )
    await world.good("POST", "/v1/bans", {"fqan": "/test", "reason": "the newest"})
    shown = await world.good("GET", "/v1/bans")
    assert (len(shown), shown[0]["reason"]) == (1000, "the newest")


async def test_consents_that_cannot_be(world: World) -> None:
    bobs = (await world.credential("bob", BOB_DN))["credential_id"]
    with pytest.raises(RequestError, match="has ended already"):
        await give(world, "tests", until=utcnow() - timedelta(seconds=1))
    with pytest.raises(RequestError, match="no credential"):
        await give(world, "tests", credential_id=bobs)
    with pytest.raises(RequestError, match="no credential"):
        await give(world, "tests", credential_id=10**9)
    assert await world.services.consents.of(ALICE_DN) == []


async def test_registering_again_does_not_bring_a_consent_back(world: World) -> None:
    wanted = {"cred_name": "a" * 32, "passphrase": "p", "expires_at": to_wire(utcnow() + timedelta(hours=9))}
    await world.credential(**wanted)
    await world.services.consents.end(ConsentEnd(), owner_dn=ALICE_DN, actor="x")
    number = (await world.credential(**wanted))["credential_id"]
    await refused(await submit(world, number), "has not consented")


async def test_another_client_takes_over_neither_jobs_nor_their_credential(world: World) -> None:
    number = (await world.credential())["credential_id"]
    await submit(world, number)
    await refused(await submit(world, number, client="other", ti=ti(2)), "'other'")
    await give(world, "other")
    await refused(await submit(world, number, client="other", ti=ti(2)), "serves another panda task")
    await world.services.consents.end(ConsentEnd(client="other"), owner_dn=ALICE_DN, actor="x")
    assert len(await (await world.pilot()).acquire()) == 1


# --- scope -----------------------------------------------------------------------------------------------------------


async def test_a_task_credential_serves_one_panda_task_and_its_repeats(world: World) -> None:
    number = (await world.credential(scope="task"))["credential_id"]
    assert (await submit(world, number, jobs=[spec(), spec()])).is_success
    assert (await submit(world, number, jobs=[spec(), spec()])).json()["created"] is False
    assert (await submit(world, number, jobs=[spec(), spec()], ti=ti(2))).is_success
    await refused(await submit(world, number, key="2"), "serves another panda task")
    assert len(await (await world.pilot()).acquire(n_jobs=5)) == 2


async def test_two_tasks_at_once_cannot_share_a_task_credential(world: World) -> None:
    number = (await world.credential(scope="task"))["credential_id"]
    replies = await asyncio.gather(*(submit(world, number, key=f"k{n}") for n in range(8)))
    assert sorted(reply.status_code for reply in replies) == [200] + [409] * 7
    assert len(await world.sql("SELECT FROM panda_task")) == 1


async def test_a_job_credential_serves_one_job(world: World) -> None:
    number = (await world.credential(scope="job"))["credential_id"]
    await refused(await submit(world, number, jobs=[spec(), spec()]), "for one job")
    assert (await submit(world, number)).is_success
    await refused(await submit(world, number, key="2"), "serves another panda task")


async def test_a_user_credential_serves_all_of_its_owner_and_nobody_else(world: World) -> None:
    number = (await world.credential(scope="user"))["credential_id"]
    for key in ("1", "2"):
        assert (await submit(world, number, key=key)).is_success
    await world.credential("bob", BOB_DN)
    assert (await submit(world, number, key="3", owner="bob")).status_code == 404
    assert len(await (await world.pilot()).acquire(n_jobs=5)) == 2


@pytest.mark.parametrize(
    ("allowed", "taken"), [("job", ["job"]), ("task", ["job", "task"]), ("user", ["job", "task", "user"])]
)
async def test_a_queue_takes_no_credential_that_serves_more_than_its_file_says(
    world: World, allowed: str, taken: list[str]
) -> None:
    world.queues["DEMO"] = Queue("DEMO", credential_scope=allowed)
    for scope in ("job", "task", "user"):
        number = (await world.credential(scope=scope))["credential_id"]
        reply = await submit(world, number, key=scope)
        if scope in taken:
            assert reply.is_success, reply.text
        else:
            await refused(reply, f"has the scope {scope}, and queue DEMO takes none that is broader than {allowed}")
    assert len(await (await world.pilot()).acquire(n_jobs=5)) == len(taken)


async def test_jobs_do_not_move_to_a_queue_that_wants_a_narrower_credential(world: World) -> None:
    world.queues["OTHER"] = Queue("OTHER", credential_scope="task")
    number = (await world.credential(scope="user"))["credential_id"]
    assert (await submit(world, number)).is_success
    await refused(await submit(world, number, queue="OTHER", ti=ti(2)), "broader than task")
    assert [row["queue"] for row in await world.sql("SELECT DISTINCT queue FROM panda_job")] == ["DEMO"]


async def test_a_job_pointed_at_another_tasks_credential_is_not_dispatched(world: World) -> None:
    await world.submit()
    other = (await world.credential("bob", BOB_DN))["credential_id"]
    await world.sql("UPDATE panda_job SET credential_id = $1", other)
    assert await (await world.pilot()).acquire() == []


# --- bans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ban", "hits"),
    [
        ({"dn": ALICE_DN}, True),
        ({"dn": ALICE_DN + "x"}, False),
        ({"dn": ALICE_DN.lower()}, False),
        ({"fqan": "/test/Role=production"}, True),
        ({"fqan": "/test/Role=production/Capability=NULL"}, True),
        ({"fqan": "/test"}, True),
        ({"fqan": "/tes"}, False),
        ({"fqan": "/test/Role=prod"}, False),
        ({"fqan": "/test/production"}, False),
    ],
)
async def test_bans_hold_at_the_next_dispatch_and_at_submission(world: World, ban: dict[str, str], hits: bool) -> None:
    task = await world.submit()
    pilot = await world.pilot()
    await world.good("POST", "/v1/bans", ban | {"reason": "compromised"})
    assert (await world.good("GET", "/v1/bans"))[0]["reason"] == "compromised"
    if not hits:
        assert len(await pilot.acquire()) == 1
        return
    assert await pilot.acquire() == []
    number = (await world.credential())["credential_id"]
    await refused(await submit(world, number), "is banned (compromised)", "banned")
    await world.good("POST", "/v1/bans/lift", ban)
    assert [job["panda_id"] for job in await pilot.acquire()] == [task["first_panda_id"]]
    assert await world.good("GET", "/v1/bans") == []


async def test_bans_are_for_clients_of_all_owners_and_logged(world: World) -> None:
    some = headers(world, "some", ("alice",))
    for method, path in (("GET", "/v1/bans"), ("POST", "/v1/bans"), ("POST", "/v1/bans/lift")):
        response = await world.call(method, path, {"dn": BOB_DN}, headers=some)
        assert response.status_code == 403, path
    assert (await world.call("POST", "/v1/bans/lift", {"dn": BOB_DN})).status_code == 404
    for wrong in ({}, {"dn": "x"}, {"fqan": "test"}, {"dn": BOB_DN, "fqan": "/test"}, {"dn": "/CN=a\n"}):
        assert (await world.call("POST", "/v1/bans", wrong)).status_code in (400, 422), wrong
    await world.good("POST", "/v1/bans", {"dn": BOB_DN, "reason": "r"})
    await world.good("POST", "/v1/bans/lift", {"dn": BOB_DN})
    assert await actions(world, BOB_DN) == ["banned", "unbanned"]


# --- revocation, keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["revoke", "destroyed"])
async def test_what_is_revoked_or_destroyed_is_not_released_any_more(world: World, verb: str) -> None:
    number = (await world.credential())["credential_id"]
    task = (await submit(world, number)).json()
    for _repeat in range(2):
        ended = await world.good("POST", f"/v1/creds/{number}/{verb}")
        assert ended["state"] == verb.replace("revoke", "revoked")
    assert await (await world.pilot()).acquire() == []
    assert (await world.sql("SELECT passphrase FROM panda_credential"))[0]["passphrase"] == b""
    await refused(await submit(world, number, key="2"), "stage a fresh one")
    assert await world.services.upkeep.close_without_credential() == 1
    assert "stage a fresh one" in (await world.job(task["first_panda_id"]))["reason"]
    assert await world.good("POST", "/v1/creds/staged", {"owner": "alice"}) == []


async def test_the_passphrase_of_what_has_expired_is_forgotten(world: World) -> None:
    registry = world.services.credentials
    old, good = [(await world.credential())["credential_id"] for _ in range(2)]
    task = (await submit(world, old)).json()
    await world.sql("UPDATE panda_credential SET expires_at = now() - interval '1 s' WHERE credential_id = $1", old)
    done = await asyncio.gather(registry.forget_expired(), registry.forget_expired())
    assert sum(done) == 1, "once, whoever does it"
    assert await registry.forget_expired() == 0
    secrets = {row["credential_id"]: row["passphrase"] for row in await world.sql("SELECT * FROM panda_credential")}
    assert secrets[old] == b""
    assert secrets[good] != b""
    assert (await world.good("GET", f"/v1/creds/{old}"))["state"] == "expired"

    assert await (await world.pilot()).acquire() == []
    why = (await world.good("GET", f"/v1/job/{task['first_panda_id']}/why"))["why"]
    assert why == f"credential {old} ends before the job could: its owner must stage a fresh one and retry"
    await refused(await submit(world, old, key="2"), "ends in 0 s")
    assert await world.services.upkeep.close_without_credential() == 1
    assert "stage a fresh one" in (await world.job(task["first_panda_id"]))["reason"]


async def test_a_clock_that_went_back_opens_nothing_that_is_forgotten(world: World) -> None:
    """Should the database's clock have been wrong: the job is not handed over, and its log says who must act."""
    number = (await world.credential())["credential_id"]
    task = (await submit(world, number)).json()
    await world.sql("UPDATE panda_credential SET passphrase = ''")
    assert await (await world.pilot()).acquire() == []
    (attempt,) = (await world.job(task["first_panda_id"]))["attempts"]
    assert "opens with no key of this service" in attempt["errors"][0]["diag"]
    assert await actions(world, ALICE_DN) == ["staged", "consented", "released", "refused"]
    assert await world.services.upkeep.close_without_credential() == 1
    assert "stage a fresh one" in (await world.job(task["first_panda_id"]))["reason"]


async def test_one_that_was_changed_keeps_no_other_from_being_sealed_again(
    job_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airpanda.credentials.registry.RESEAL_BATCH", 1)
    old, new = (Secret(Fernet.generate_key().decode()) for _ in range(2))
    async with running(job_database, make_settings(tmp_path), fernet_keys=[old]) as world:
        for _ in range(3):
            await world.credential()
        await world.sql("UPDATE panda_credential SET passphrase = 'x' WHERE credential_id = 1")
    async with running(job_database, world.settings, fernet_keys=[new, old]) as world:
        assert sum([await world.services.credentials.seal_again() for _ in range(4)]) == 2
        rows = await world.sql("SELECT state, passphrase, sealed_by FROM panda_credential ORDER BY credential_id")
        assert (rows[0]["state"], rows[0]["passphrase"]) == ("revoked", b"")
        newest = world.services.credentials.key_ids[0]
        assert [(row["state"], row["sealed_by"]) for row in rows[1:]] == [("staged", newest)] * 2
        assert (await actions(world)).count("refused") == 1


async def test_what_is_forgotten_is_not_sealed_again(job_database: Database, tmp_path: Path) -> None:
    old, new = (Secret(Fernet.generate_key().decode()) for _ in range(2))
    async with running(job_database, make_settings(tmp_path), fernet_keys=[old]) as world:
        for _ in range(2):
            await world.credential()
        await world.sql("UPDATE panda_credential SET expires_at = now() WHERE credential_id = 1")
        assert await world.services.credentials.forget_expired() == 1
    async with running(job_database, world.settings, fernet_keys=[new, old]) as world:
        assert await world.services.credentials.seal_again() == 1
        assert await world.services.credentials.seal_again() == 0


async def test_a_destroyed_credential_cannot_come_back_as_revoked(world: World) -> None:
    number = (await world.credential())["credential_id"]
    await world.good("POST", f"/v1/creds/{number}/destroyed")
    assert (await world.good("POST", f"/v1/creds/{number}/revoke"))["state"] == "destroyed"


async def test_a_passphrase_changed_in_the_database_stops_its_own_jobs_only(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await world.submit(key="bad")
    good = await world.submit(key="good")
    await world.sql("UPDATE panda_credential SET passphrase = 'x' WHERE credential_id = 1")
    jobs = await (await world.pilot()).acquire(n_jobs=5)
    assert [job["panda_id"] for job in jobs] == [good["first_panda_id"]]
    assert (await world.job(bad["first_panda_id"]))["status"] == "activated"
    rows = await world.good("GET", "/v1/creds/audit", params={"owner_dn": ALICE_DN})
    assert ["operators of this service must look" in row["detail"] for row in rows if row["action"] == "refused"] == [
        True
    ]
    assert await world.services.upkeep.close_without_credential() == 1


async def test_a_rotated_key_seals_again_and_then_the_old_one_may_go(job_database: Database, tmp_path: Path) -> None:
    old, new = (Secret(Fernet.generate_key().decode()) for _ in range(2))
    async with running(job_database, make_settings(tmp_path), fernet_keys=[old]) as world:
        await world.submit(credential_id=(await world.credential(passphrase="hunter-2"))["credential_id"])
        await world.credential()
        assert await world.services.credentials.seal_again() == 0
    async with running(job_database, world.settings, fernet_keys=[new, old]) as world:
        assert await world.services.credentials.seal_again() == 2
        assert await world.services.credentials.seal_again() == 0
    async with running(job_database, world.settings, fernet_keys=[new]) as world:
        (job,) = await (await world.pilot()).acquire()
        assert job["credential"]["passphrase"] == "hunter-2"


# --- the list --------------------------------------------------------------------------------------------------------


async def test_the_list_finds_by_owner_task_instance_and_end_and_shows_no_others(world: World) -> None:
    first = await world.credential(ti=ti(1), expires_at=to_wire(utcnow() + timedelta(hours=2)))
    second = await world.credential(ti=ti(2))
    await world.credential(ti=ti(1, task_id="another"))
    await world.credential("bob", BOB_DN)
    ids = [second["credential_id"], first["credential_id"]]

    async def found(query: dict[str, Any], **options: Any) -> list[int]:
        return [view["credential_id"] for view in await world.good("POST", "/v1/creds/staged", query, **options)]

    assert await found({"owner": "alice", "ti": ti(9)}) == ids
    assert await found({"owner": "bob", "ti": ti(1)}) == []
    assert await found({"ends_within_s": 3 * 3600}) == ids[1:]
    assert len(await found({})) == 4
    assert await found({"owner": "alice"}, headers=headers(world, "b", ("bob",))) == []
    await world.sql("UPDATE panda_credential SET expires_at = now() WHERE credential_id = $1", ids[0])
    assert await found({"owner": "alice", "ti": ti(1)}) == ids[1:]


# --- names as people have them, and as attackers write them ----------------------------------------------------------

ODD = [
    '/O=Test Grid/CN=it\'s "quoted" (x)',
    "/O=Test Grid/CN=host/with/slashes",
    "/DC=org/CN=Jürgen 日本",
    "/O=Test Grid/CN=" + "a" * 1000,
    "/O=Test Grid/CN=%s; DROP TABLE panda_credential; --",
    "/O=Test Grid/CN={0} ${HOME} `id` \\",
]


@pytest.mark.parametrize("dn", ODD)
async def test_odd_names_are_data_from_registration_to_audit(world: World, dn: str) -> None:
    number = (await world.credential(dn=dn, username=dn, consent=None))["credential_id"]
    wanted = ConsentGrant(client="tests", queues=["*"], until=utcnow() + timedelta(hours=1))
    await world.services.consents.give(wanted, owner_dn=dn, now=utcnow())
    assert (await submit(world, number)).is_success
    await world.good("POST", "/v1/bans", {"dn": dn, "reason": dn[:20]})
    pilot = await world.pilot()
    assert await pilot.acquire() == []
    await world.good("POST", "/v1/bans/lift", {"dn": dn})
    (job,) = await pilot.acquire()
    assert (job["owner_dn"], job["credential"]["username"]) == (dn, dn)
    assert await actions(world, dn) == ["staged", "consented", "banned", "unbanned", "released"]


@pytest.mark.parametrize("dn", ["/O=x/CN=a\nb", "/O=x/CN=a\0b", "/O=x/CN=\x7f", "CN=x", "/" + "O=" + "x" * 1100, ""])
async def test_names_that_are_none_are_refused_and_nothing_is_stored(world: World, dn: str) -> None:
    wanted = {
        "owner": "alice",
        "owner_dn": dn,
        "server": "h:1",
        "username": "u",
        "cred_name": "0" * 32,
        "passphrase": "p",
        "retriever_dn": ALICE_DN,
        "expires_at": "2100-01-01T00:00:00Z",
    }
    assert (await world.call("POST", "/v1/creds/register", wanted)).status_code in (400, 422)
    swapped = wanted | {"owner_dn": ALICE_DN, "retriever_dn": dn}
    assert (await world.call("POST", "/v1/creds/register", swapped)).status_code in (400, 422)
    assert await world.sql("SELECT FROM panda_credential") == []


@pytest.mark.parametrize(
    "change",
    [
        {"expires_at": "2100-01-01T00:00:00"},
        {"consent": {"queues": []}},
        {"consent": {"queues": ["*", "a b"]}},
        {"consent": {"queues": ["*"], "client": "another"}},
        {"scope": "everything"},
        {"cred_name": "../../etc/passwd"},
        {"server": "localhost:7512\nCOMMAND=3"},
    ],
)
async def test_registrations_that_cannot_be(world: World, change: dict[str, Any]) -> None:
    wanted = {
        "owner": "alice",
        "owner_dn": ALICE_DN,
        "server": "h:1",
        "username": "u",
        "cred_name": "0" * 32,
        "passphrase": "p",
        "retriever_dn": ALICE_DN,
        "expires_at": "2100-01-01T00:00:00Z",
    }
    assert (await world.call("POST", "/v1/creds/register", wanted | change)).status_code == 422


async def test_colliding_names_are_a_conflict_that_shows_nothing(world: World) -> None:
    first = await world.credential(cred_name="a" * 32, passphrase="first-secret-phrase")
    assert first["state"] == "staged"
    wanted = {
        "owner": "bob",
        "owner_dn": BOB_DN,
        "server": "localhost:7512",
        "username": ALICE_DN,
        "cred_name": "a" * 32,
        "passphrase": "p",
        "retriever_dn": ALICE_DN,
        "expires_at": "2100-01-01T00:00:00Z",
    }
    refused = await world.call("POST", "/v1/creds/register", wanted)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "first-secret" not in refused.text
