"""A dispatcher with its own database, and callers of it: ``world`` for one test.

Use it by ``from support.dispatcher import World, job_database, template_database, world`` with
``from support.postgres import postgres`` in a test module.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import httpx
import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from fastapi import FastAPI

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.secret import Secret
from airpanda.core.settings import Settings
from airpanda.db.models import metadata
from airpanda.dispatcher.app import create_app
from airpanda.dispatcher.auth import PEER_CHAIN
from airpanda.dispatcher.services import Services
from airpanda.dispatcher.tokens import create_key
from support.postgres import Database, Server

ALICE_DN = "/O=Test Grid/CN=Alice Analyst"
BOB_DN = "/O=Test Grid/CN=Bob Analyst"
OWNERS = {"alice": ALICE_DN, "bob": BOB_DN}
PILOT_DN = "/O=Test Grid/CN=Robot: pilot factory 1"
PROVEN = "x-tests-proven-dn"
"""Header by which a test says what the gateway's TLS would have proven; the app under test never sees it."""


@dataclass(frozen=True)
class Slot:
    cores: int = 4
    memory_mib: int = 8000
    disk_mib: int = 8000
    walltime_s: int = 7200


@dataclass(frozen=True)
class Queue:
    """What the dispatcher needs of a queue."""

    name: str
    is_online: bool = True
    slot: Slot = field(default_factory=Slot)
    token_only: bool = False
    features: tuple[str, ...] = ()
    credential_scope: str = "user"

    def to_wire(self) -> dict[str, Any]:
        return {"queue": {"name": self.name}}


@dataclass
class World:
    """The application, its database, and shortcuts for what most tests need."""

    app: FastAPI
    database: Database
    settings: Settings
    queues: dict[str, Queue]
    http: httpx.AsyncClient

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    def client_headers(
        self,
        owners: tuple[str, ...] = ("*",),
        queues: tuple[str, ...] = ("*",),
        *,
        name: str = "tests",
        **rights: Any,
    ) -> dict[str, str]:
        token = self.services.issuer.client_token(name, owners, queues, timedelta(hours=1), utcnow(), **rights)
        return {"Authorization": f"Bearer {token.reveal()}"}

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """As a client that may do everything, unless ``headers`` says otherwise."""
        options.setdefault("headers", self.client_headers(pilots=True))
        return await self.http.request(method, path, json=body, **options)

    async def good(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The JSON of a successful call."""
        response = await self.call(method, path, body, **options)
        assert response.is_success, response.text
        return response.json()

    async def credential(self, owner: str = "alice", dn: str = "", **changes: Any) -> dict[str, Any]:
        """Register a staged credential."""
        wanted = self.registration(owner, dn) | changes
        return await self.good("POST", "/v1/creds/register", wanted)

    def registration(self, owner: str = "alice", dn: str = "") -> dict[str, Any]:
        """What a client says of a credential it has staged."""
        dn = dn or OWNERS.get(owner, f"/O=Test Grid/CN={owner}")
        return {
            "owner": owner,
            "owner_dn": dn,
            "fqans": ["/test/Role=production"],
            "server": "localhost:7512",
            "username": dn,
            "cred_name": secrets.token_hex(16),
            "passphrase": secrets.token_urlsafe(32),
            "retriever_dn": PILOT_DN,
            "expires_at": to_wire(utcnow() + timedelta(hours=12)),
            "consent": {"queues": ["*"]},
        }

    async def submit(self, n: int = 1, *, key: str = "", headers: Any = None, **changes: Any) -> dict[str, Any]:
        """Submit n jobs; without ``credential_id`` a credential is registered for them."""
        if "credential_id" not in changes:
            changes["credential_id"] = (await self.credential(changes.get("owner", "alice")))["credential_id"]
        wanted = {
            "task_key": key or secrets.token_hex(8),
            "task_name": "a-task",
            "owner": "alice",
            "queue": "DEMO",
            "ti": ti(),
            "jobs": [spec(f"job-{i}") for i in range(n)],
        } | changes
        return await self.good("POST", "/v1/job/submit", wanted, headers=headers or self.client_headers())

    async def pilots(self, n: int = 1, queue: str = "DEMO") -> list[Pilot]:
        batch = await self.good("POST", "/v1/batch/intend", {"queue": queue, "n_pilots": n})
        return [Pilot(self, each["pilot_id"], each["token"], queue) for each in batch["pilots"]]

    async def pilot(self, queue: str = "DEMO") -> Pilot:
        return (await self.pilots(1, queue))[0]

    async def job(self, panda_id: int) -> dict[str, Any]:
        return await self.good("GET", f"/v1/job/{panda_id}")

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        """Straight to the database."""
        connection = await asyncpg.connect(self.database.url())
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    async def until_waiting(self, n: int) -> None:
        """Until so many statements of this database wait for a lock."""
        waiting = """
        SELECT count(DISTINCT l.pid) AS n FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE NOT l.granted AND a.datname = current_database()
        """
        async with asyncio.timeout(50):
            # Each time anew: inside a transaction pg_stat_activity stays as it was.
            while (await self.sql(waiting))[0]["n"] < n:
                await asyncio.sleep(0.05)

    async def end_lease(self, panda_id: int) -> None:
        """As if the pilot had been silent for long."""
        await self.sql(
            "UPDATE panda_job SET lease_expires_at = now() - interval '1 s', check_at = now() - interval '1 s'"
            " WHERE panda_id = $1 AND pilot_id > 0",
            panda_id,
        )


@dataclass(frozen=True)
class Pilot:
    """A pilot of the world that speaks HTTP."""

    world: World
    pilot_id: int
    token: str = field(repr=False)
    queue: str
    dn: str = PILOT_DN

    @property
    def headers(self) -> dict[str, str]:
        proven = {PROVEN: self.dn} if self.dn else {}
        return {"Authorization": f"Bearer {self.token}"} | proven

    async def post(self, verb: str, body: Any) -> httpx.Response:
        return await self.world.http.post(f"/v1/pilot/{verb}", json=body, headers=self.headers)

    async def acquire(self, **changes: Any) -> list[dict[str, Any]]:
        offer = {
            "site_name": self.queue,
            "node": "wn1.example.org",
            "cores": 4,
            "memory": 8000,
            "disk_space": 8000,
            "remaining_time": 7200,
        } | changes
        response = await self.post("acquire_jobs", offer)
        assert response.is_success, response.text
        return response.json()["jobs"]

    async def report(self, job: dict[str, Any], status: str, **changes: Any) -> httpx.Response:
        body = {
            "job_id": job["panda_id"],
            "attempt_nr": job["attempt_nr"],
            "token": job["token"],
            "job_status": status,
        } | changes
        return await self.post("update_job", body)

    async def good_report(self, job: dict[str, Any], *statuses: str, **changes: Any) -> dict[str, Any]:
        """One report after the other; the last one carries ``changes``."""
        reply: dict[str, Any] = {}
        for status in statuses:
            response = await self.report(job, status, **(changes if status == statuses[-1] else {}))
            assert response.is_success, response.text
            reply = response.json()
        return reply

    async def put(self, job: dict[str, Any], lfn: str, content: bytes, **headers: str) -> httpx.Response:
        extra = {
            "X-Airpanda-Lease": job["token"],
            "X-Airpanda-Sha256": hashlib.sha256(content).hexdigest(),
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        path = f"/v1/pilot/file/{job['panda_id']}/{job['attempt_nr']}/{lfn}"
        return await self.world.http.put(path, content=content, headers=self.headers | extra)

    async def get_input(self, job: dict[str, Any], lfn: str) -> httpx.Response:
        path = f"/v1/pilot/input/{job['panda_id']}/{job['attempt_nr']}/{lfn}"
        return await self.world.http.get(path, headers=self.headers | {"X-Airpanda-Lease": job["token"]})


def ti(try_number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "dag_id": "a_dag",
        "run_id": "manual__2026-01-01T00:00:00+00:00",
        "task_id": "a_task",
        "try_number": try_number,
        "ti_id": f"019a0000-0000-7000-8000-{try_number:012d}",
    } | changes


def spec(name: str = "job", **changes: Any) -> dict[str, Any]:
    return {"job_name": name, "argv": ["true"], "walltime_s": 3600} | changes


@pytest.fixture(scope="session")
def template_database(postgres: Server) -> Iterator[Database]:
    """A database with our tables, to be copied."""
    name = postgres.create_database(f"t_{secrets.token_hex(6)}")
    engine = sa.create_engine(postgres.url("postgresql+psycopg2", name))
    metadata.create_all(engine)
    engine.dispose()
    yield Database(postgres, name)
    postgres.drop_database(name)


@pytest.fixture
def job_database(postgres: Server, template_database: Database) -> Iterator[Database]:
    """A fresh database with our tables."""
    name = postgres.create_database(f"t_{secrets.token_hex(6)}", template=template_database.name)
    yield Database(postgres, name)
    postgres.drop_database(name)


def make_settings(directory: Path, **changes: Any) -> Settings:
    """Settings with a fresh signing key below ``directory``."""
    create_key(directory / "signing.pem")
    return Settings(
        **{
            "signing_key": directory / "signing.pem",
            "file_store": directory / "files",
            "include_dir": directory,
            "max_upload_bytes": 1024 * 1024,
        }
        | changes
    )


class Proven:
    """The gateway's TLS for tests without TLS: turns the header into what the protocol of ``mtls`` hands over."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        proven = [value.decode() for name, value in scope["headers"] if name.decode() == PROVEN]
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name.decode() != PROVEN]
        if proven:
            chain = SimpleNamespace(identity_dn=proven[0], limited=False, proxies=())
            scope.setdefault("extensions", {})["tls"] = {PEER_CHAIN: lambda: chain}
        await self._app(scope, receive, send)


@contextlib.asynccontextmanager
async def running(database: Database, settings: Settings, **options: Any) -> AsyncIterator[World]:
    """A dispatcher in this process, without a watchdog unless asked for."""
    queues = {name: Queue(name) for name in ("DEMO", "OTHER")}
    app = create_app(
        settings,
        dsn=Secret(database.url()),
        **{
            "queues": lambda: queues,
            "watchdog": False,
            "pilots": True,
            "fernet_keys": [Secret(Fernet.generate_key().decode())],
        }
        | options,
    )
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=Proven(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://dispatcher") as http:
            yield World(app, database, settings, queues, http)


@pytest.fixture
async def world(job_database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with running(job_database, make_settings(tmp_path)) as made:
        yield made
