"""Input sandboxes: of their owner alone, whole or not there, and gone when nobody needs them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.dispatcher import World, job_database, make_settings, running, spec, template_database, ti, world
from support.gateway import GatewayPlace
from support.pki import Pki, pki
from support.postgres import Database, Server, postgres

from airpanda.core.clock import utcnow
from airpanda.core.secret import Secret
from airpanda.db.pool import Database as Pool
from airpanda.jobs.retention import Keep, Retention
from airpanda.jobs.sandboxes import refer
from airpanda.messages import JobSpec

__all__ = ["job_database", "pki", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
CONTENT = b"int main() { return 0; }\n"
WEEK = Keep(timedelta(days=7), timedelta(days=365), timedelta(days=730), timedelta(days=7))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def path_of(content: bytes = CONTENT, owner: str = "alice") -> str:
    return f"/v1/file/sandbox/{owner}/{sha256(content)}"


async def put(world: World, content: Any = CONTENT, path: str = "", **headers: Any) -> httpx.Response:
    return await world.http.put(path or path_of(content), content=content, headers=headers or world.client_headers())


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def stored(world: World) -> list[Path]:
    return files(world.settings.file_store)


def needing(*contents: bytes, name: str = "job") -> dict[str, Any]:
    inputs = [{"lfn": f"in{n}", "source": f"panda:sandbox/{sha256(each)}"} for n, each in enumerate(contents)]
    return spec(name, inputs=inputs)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", CONTENT[:-1], CONTENT + b"x", b"\0" * len(CONTENT)], ids=["empty", "short", "long", "other"]
)
async def test_another_content_than_its_name_says_leaves_nothing(world: World, content: bytes) -> None:
    refused = await put(world, content, path_of())
    assert (refused.status_code, "SHA-256" in refused.json()["detail"]) == (400, True)
    assert stored(world) == []
    assert await world.sql("SELECT * FROM panda_sandbox") == []


@pytest.mark.parametrize(
    "name",
    [
        "alice/..%2f..%2fetc%2fpasswd",
        "alice/%00" + "a" * 63,
        "alice/" + "A" * 64,
        "alice/" + "a" * 63,
        "alice/" + "a" * 64 + "%0a",
        "..%2fbob/" + "a" * 64,
        ".hidden/" + "a" * 64,
        "%00/" + "a" * 64,
        "a" * 251 + "/" + "a" * 64,
    ],
)
async def test_names_that_are_none(world: World, name: str) -> None:
    for method in ("PUT", "GET"):
        refused = await world.http.request(method, f"/v1/file/sandbox/{name}", headers=world.client_headers())
        assert refused.status_code in (404, 422), refused.text
    assert stored(world) == []


async def test_too_long_announced_or_not(job_database: Database, tmp_path: Path) -> None:
    async with running(job_database, make_settings(tmp_path, max_sandbox_bytes=1000)) as world:

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(11):
                yield b"x" * 100

        for content in (b"x" * 1001, chunks()):
            refused = await put(world, content, path_of(b"x" * 1100))
            assert refused.status_code == 413
            assert "longer than the 1000 bytes" in refused.json()["detail"]
            assert "[airpanda] max_sandbox_bytes" in refused.json()["detail"]
        assert (await put(world, b"x" * 1000)).status_code == 201
        assert len(stored(world)) == 1


async def test_only_clients_of_the_owner(world: World) -> None:
    issuer = world.services.issuer
    expired = issuer.client_token("c", ["*"], ["*"], timedelta(seconds=1), utcnow() - timedelta(hours=1)).reveal()
    pilot = await world.pilot()
    await put(world)
    for headers, status in (
        ({"Authorization": ""}, 401),
        ({"Authorization": f"Bearer {expired}"}, 401),
        (pilot.headers, 401),
        (world.client_headers(("bob",)), 403),
        (world.client_headers(()), 403),
    ):
        for method, end in (("PUT", ""), ("POST", "/touch"), ("GET", "")):
            refused = await world.http.request(method, path_of() + end, content=CONTENT, headers=headers)
            assert refused.status_code == status, (headers, method)
    reader = world.client_headers(read_only=True)
    assert "read-only" in (await put(world, **reader)).json()["detail"]
    assert (await world.http.get(path_of(), headers=reader)).content == CONTENT
    assert len(stored(world)) == 1


async def test_a_job_cannot_name_what_is_not_there_or_another_owners(world: World) -> None:
    await put(world, path=path_of(owner="bob"))
    credential = await world.credential()
    for each in (CONTENT, b"nobody has it"):
        wanted = {
            "task_key": "k", "task_name": "t", "owner": "alice", "queue": "DEMO", "ti": ti(),
            "credential_id": credential["credential_id"], "jobs": [spec("good"), needing(each, name="bad")],
        }  # fmt: skip
        refused = await world.call("POST", "/v1/job/submit", wanted, headers=world.client_headers())
        assert refused.status_code == 400
        assert f"job bad: there is no sandbox {sha256(each)} of owner 'alice': upload it" in refused.json()["detail"]
    assert await world.sql("SELECT * FROM panda_job") == []
    for source in ("panda:sandbox/", "panda:sandbox/" + "a" * 63, "panda:sandbox/" + "g" * 64, "panda:sandbox/../x"):
        wanted["jobs"] = [spec(inputs=[{"lfn": "in", "source": source}])]
        refused = await world.call("POST", "/v1/job/submit", wanted, headers=world.client_headers())
        assert refused.status_code == 422, source


# --- what is meant -------------------------------------------------------------------------------------------------


async def test_from_a_client_to_a_pilot(world: World) -> None:
    made = await put(world)
    assert made.status_code == 201
    view = made.json()
    assert view["source"] == f"panda:sandbox/{sha256(CONTENT)}"
    (blob,) = stored(world)
    assert (blob.read_bytes(), blob.stat().st_mode & 0o777, blob.parent.stat().st_mode & 0o077) == (CONTENT, 0o600, 0)
    again = await put(world)
    assert (again.status_code, again.json()) == (200, view)
    assert stored(world) == [blob]
    await put(world, b"")
    await world.submit(jobs=[needing(CONTENT, b"")])
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    got = await pilot.get_input(job, "in0")
    assert (got.content, got.headers["x-airpanda-sha256"]) == (CONTENT, sha256(CONTENT))
    assert (await pilot.get_input(job, "in1")).content == b""
    stranger = await world.pilot()
    assert (await stranger.get_input(job, "in0")).json()["code"] == "stale-report"
    shown = await world.http.get(path_of(), headers=world.client_headers(("alice",)))
    assert (shown.content, shown.headers["content-disposition"][:10]) == (CONTENT, "attachment")


async def test_many_at_once_leave_one(world: World) -> None:
    answers = await asyncio.gather(*(put(world) for _ in range(8)))
    assert sorted(each.status_code for each in answers) == [200] * 7 + [201]
    assert len(stored(world)) == 1


async def test_content_that_is_gone_is_said_and_can_be_uploaded_again(world: World) -> None:
    await put(world)
    await world.submit(jobs=[needing(CONTENT)])
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    stored(world)[0].unlink()
    gone = await pilot.get_input(job, "in0")
    assert (gone.status_code, "upload it again" in gone.text) == (409, True)
    assert (await world.call("POST", path_of() + "/touch")).status_code == 404
    assert (await put(world)).status_code == 201
    assert (await pilot.get_input(job, "in0")).content == CONTENT


# --- how long it is kept -------------------------------------------------------------------------------------------


async def age(world: World, days: int = 8) -> None:
    moved = f"- interval '{days} days'"
    await world.sql(f"UPDATE panda_sandbox SET used_at = used_at {moved}")
    await world.sql(f"UPDATE panda_job SET changed_at = changed_at {moved}")
    await world.sql(f"UPDATE panda_task SET created_at = created_at {moved}")


async def put_away(world: World) -> int:
    retention = Retention(world.services.database, world.settings.file_store, WEEK)
    removed = 0
    while done := await retention.step():
        removed += done.sandboxes_removed
    return removed


async def due(world: World) -> int:
    retention = Retention(world.services.database, world.settings.file_store, WEEK)
    return (await retention.would()).sandboxes_removed


async def test_what_nobody_needs_goes_and_what_a_job_needs_stays(world: World) -> None:
    for each in (CONTENT, b"unused", b"touched"):
        await put(world, each)
    await world.submit(jobs=[needing(CONTENT)])
    pilot = await world.pilot()
    assert await put_away(world) == 0
    await age(world)
    assert (await world.call("POST", path_of(b"touched") + "/touch")).status_code == 200
    assert await due(world) == 1
    assert await put_away(world) == 1
    assert await due(world) == 0
    assert len(stored(world)) == 2
    gone = await world.call("GET", path_of(b"unused"))
    assert (gone.status_code, "upload it" in gone.text) == (404, True)
    (job,) = await pilot.acquire()
    assert (await pilot.get_input(job, "in0")).content == CONTENT
    await pilot.good_report(job, "starting", "running", "finished")
    await age(world)
    assert await put_away(world) == 2  # with its panda task in the archive, which does not need it any more
    assert stored(world) == []
    assert await world.sql("SELECT * FROM panda_task_sandbox") == []
    assert (await put(world)).status_code == 201


async def test_a_removal_that_was_killed_is_finished_and_an_upload_meanwhile_stays(world: World) -> None:
    await put(world)
    await put(world, b"other")
    await world.sql("UPDATE panda_sandbox SET removing = true")
    assert (await world.call("GET", path_of())).status_code == 404
    assert (await put(world)).status_code == 201
    assert len(stored(world)) == 2  # the replaced content is gone already
    assert await put_away(world) == 1
    assert (await world.call("GET", path_of())).content == CONTENT
    assert len(stored(world)) == 1


async def test_one_that_is_being_named_by_a_submission_is_not_removed(world: World) -> None:
    await put(world)
    await age(world)
    async with world.services.database.transaction() as connection:
        await refer(connection, [JobSpec(**needing(CONTENT))], owner="alice", task_id=2**40)
        assert await put_away(world) == 0
    assert len(stored(world)) == 1


# --- through the gateway -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="place")
def _place(
    postgres: Server, template_database: Database, pki: Pki, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayPlace]:
    name = postgres.create_database(f"t_{os.urandom(6).hex()}", template=template_database.name)
    place = GatewayPlace.create(Database(postgres, name), pki, tmp_path_factory.mktemp("gateway"))
    try:
        place.start()
        yield place
    finally:
        place.kill()
        postgres.drop_database(name)


def test_a_body_that_breaks_off_leaves_nothing_and_is_no_failure(place: GatewayPlace, pki: Pki) -> None:
    gateway = place.running()
    root = place.directory / "files"
    with half_an_upload(place, pki):
        wait_until(lambda: len(files(root)) == 1)
    wait_until(lambda: files(root) == [])
    with gateway.client() as http:
        assert http.get(path_of()).status_code == 404
        large = os.urandom(3 * 1024 * 1024)
        assert http.put(path_of(large), content=large).status_code == 201
        assert http.get(path_of(large)).content == large
    assert "Traceback" not in gateway.log.read_text()


@contextmanager
def half_an_upload(place: GatewayPlace, pki: Pki) -> Iterator[None]:
    """All but the last byte, on a connection that stays."""
    gateway = place.running()
    context = ssl.create_default_context(capath=str(pki.ca_dir))
    head = (
        f"PUT {path_of()} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CONTENT)}\r\n"
        f"Authorization: Bearer {gateway.client_token()}\r\n\r\n"
    )
    with (
        socket.create_connection(("localhost", gateway.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as peer,
    ):
        peer.sendall(head.encode() + CONTENT[:-1])
        yield


async def test_what_a_killed_gateway_leaves_goes_after_a_day(place: GatewayPlace, pki: Pki) -> None:
    root = place.directory / "files"
    kept = set(files(root))
    with half_an_upload(place, pki):
        await asyncio.to_thread(wait_until, lambda: len(files(root)) == len(kept) + 1)
        place.kill()
    (left,) = set(files(root)) - kept
    pool = Pool(Secret(place.database.url("postgresql")), max_connections=1)
    await pool.open()
    try:
        retention = Retention(pool, root, WEEK)
        for hours, due in ((23, 0), (25, 1)):
            then = time.time() - hours * 3600
            os.utime(left, (then, then))
            assert (await retention.would()).uploads_removed == due
            assert left.exists()
            assert (await retention.step()).uploads_removed == due
    finally:
        await pool.close()
        place.start()
    assert set(files(root)) == kept


def wait_until(holds: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
