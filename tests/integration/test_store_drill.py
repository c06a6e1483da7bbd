"""The drill: 5 000 jobs, 50 pilots, two gateways and PostgreSQL killed and started again at random.

In the end every job is final exactly once, no attempt was ever given to two pilots, what a pilot was told to be
finished is finished, the status log is a walk through the table of transitions, and the counters equal a recount.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psycopg2
import pytest
import sqlalchemy as sa
from support.dispatcher import spec, ti
from support.gateway import GatewayPlace, RunningGateway, good
from support.pki import Pki
from support.postgres import Database

from airpanda.core.clock import to_wire, utcnow
from airpanda.db.models import metadata
from airpanda.db.sql import counts as counts_sql
from airpanda.db.states import may_follow
from airpanda.messages import JobStatus
from airpanda_demo.postgres import PostgresError, PrivatePostgres

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
JOBS, PILOTS = 5000, 50
LEASE_S = 10
KINDS = ("postgres", "gateway")
END_S = 900.0
USER_ERROR = {"source": "exe", "code": 1, "diag": "segfault", "blame": "user"}
SITE_ERROR = {"source": "pilot", "code": 1226, "diag": "the switch failed", "blame": "site"}
FINAL = {str(status) for status in JobStatus if status.is_final}


class Gone(Exception):
    """The attempt is not ours any more."""


@dataclass
class Drill:
    """What the simulated pilots saw."""

    postgres: PrivatePostgres
    places: list[GatewayPlace]
    chance: random.Random
    given: Counter[tuple[int, int]] = field(default_factory=Counter)
    finished: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Pilot:
    """One simulated pilot. It repeats what was not answered, at whichever gateway answers."""

    drill: Drill
    http: httpx.AsyncClient

    async def ask(self, verb: str, body: Any, *, repeat: bool) -> Any:
        while not self.drill.over.is_set():
            place = self.drill.chance.choice(self.drill.places)
            with contextlib.suppress(httpx.TransportError):
                reply = await self.http.post(f"https://localhost:{place.port}/v1/pilot/{verb}", json=body)
                if reply.is_success:
                    return reply.json()
                self.drill.refused[reply.status_code] += 1
                assert reply.status_code in (409, 503), reply.text
                if reply.status_code == 409:
                    raise Gone
            if not repeat:
                return None
            await asyncio.sleep(0.2)
        raise Gone

    async def work(self) -> None:
        while not self.drill.over.is_set():
            with contextlib.suppress(Gone):
                await self._round()

    async def _round(self) -> None:
        n = self.drill.chance.randint(1, 10)
        offer = {
            "site_name": "DEMO", "node": f"wn{self.drill.chance.randint(1, 20)}", "n_jobs": n, "cores": 4,
            "memory": 8000, "disk_space": 8000, "remaining_time": 7200,
        }  # fmt: skip
        reply = await self.ask("acquire_jobs", offer, repeat=False)
        if reply is None or not reply["jobs"]:
            await asyncio.sleep(0.3)
            return
        jobs = reply["jobs"]
        self.drill.given.update((job["panda_id"], job["attempt_nr"]) for job in jobs)
        for status in ("starting", "running", "running"):
            jobs = await self.report([(job, {"job_status": status}) for job in jobs])
            await asyncio.sleep(self.drill.chance.uniform(0.0, 0.3))
            if self.drill.chance.random() < 0.02:
                return  # falls silent with all it holds
        ends = [(job, self._end()) for job in jobs]
        for job in await self.report(ends):
            if job["end"] == "finished":
                self.drill.finished[job["panda_id"]] += 1

    def _end(self) -> dict[str, Any]:
        luck = self.drill.chance.random()
        if luck < 0.9:
            return {"job_status": "finished", "trans_exit_code": 0}
        return {"job_status": "failed", "errors": [USER_ERROR if luck < 0.95 else SITE_ERROR]}

    async def report(self, wanted: list[tuple[Any, dict[str, Any]]]) -> list[Any]:
        """The jobs whose report was taken; of the others the pilot stops the payload."""
        if not wanted:
            raise Gone
        bodies = [
            {"job_id": job["panda_id"], "attempt_nr": job["attempt_nr"], "token": job["token"], **what}
            for job, what in wanted
        ]
        if len(bodies) == 1:
            await self.ask("update_job", bodies[0], repeat=True)
            return [{**wanted[0][0], "end": bodies[0]["job_status"]}]
        results = await self.ask("update_jobs_bulk", {"job_list": bodies}, repeat=True)
        assert {result["problem"]["code"] for result in results if result["problem"]} <= {"stale-report"}
        return [
            {**job, "end": what["job_status"]}
            for (job, what), result in zip(wanted, results, strict=True)
            if result["reply"]
        ]


async def killer(drill: Drill) -> None:
    """Kill something, let it be down for a moment, start it again.

    Both kinds in each pair, in random order: with a coin for each kill one seed in some tens spared the gateways.
    """
    kinds: list[str] = []
    while not drill.over.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(drill.over.wait(), drill.chance.uniform(4.0, 8.0))
            return
        kinds = kinds or drill.chance.sample(KINDS, 2)
        kind = kinds.pop()
        drill.kills[kind] += 1
        if kind == "postgres":
            await asyncio.to_thread(_restart_postgres, drill.postgres)
        else:
            place = drill.chance.choice(drill.places)
            await asyncio.to_thread(_restart_gateway, place)


def _restart_gateway(place: GatewayPlace) -> None:
    place.kill()
    time.sleep(0.5)
    place.start()


def _restart_postgres(server: PrivatePostgres) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        server.stop()
        try:
            server.start()
            return
        except (PostgresError, psycopg2.OperationalError):  # the old backends have not all noticed yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


async def count_to_the_end(drill: Drill, url: str) -> None:
    """Over when no job is left that is not final and both were killed twice, or when time is up."""
    end = time.monotonic() + END_S
    while time.monotonic() < end:
        await asyncio.sleep(1.0)
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            connection = await asyncpg.connect(url, timeout=5)
            try:
                left = await connection.fetchval(
                    "SELECT count(*) FROM panda_job WHERE status <> ALL ($1::text[])", list(FINAL)
                )
            finally:
                await connection.close()
            if left == 0 and min(drill.kills[kind] for kind in KINDS) >= 2:  # a fast machine is done before
                break
    drill.over.set()


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[PrivatePostgres]:
    """One of its own, to be killed. Not durable: the machine stays up, only the server dies."""
    with PrivatePostgres(tmp_path / "postgres", durable=False) as server:
        yield server


async def test_drill(server: PrivatePostgres, tmp_path: Path) -> None:
    name = server.create_database("drill")
    engine = sa.create_engine(server.url("postgresql+psycopg2", name))
    metadata.create_all(engine)
    engine.dispose()
    database = Database(server, name)
    seed = int(os.environ.get("AIRPANDA_DRILL_SEED", secrets.randbelow(10**6)))
    print(f"AIRPANDA_DRILL_SEED={seed}")
    pki = Pki(tmp_path / "pki")
    options = {"LEASE": str(LEASE_S), "HEARTBEAT_INTERVAL": "2", "PILOT_RATE": "0", "STRANGER_RATE": "0"}
    first = GatewayPlace.create(database, pki, tmp_path / "gateway", options)
    places = [first, first.another(tmp_path / "gateway-2")]
    drill = Drill(server, places, random.Random(seed))
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.callback(place.kill)
            place.start()
        tasks = submit(first.running(), pki.dn("pilot"))
        tokens = [first.running().pilot()["token"] for _ in range(PILOTS)]
        async with contextlib.AsyncExitStack() as clients:
            pilots = []
            for token in tokens:
                http = first.running().as_pilot_async(token)
                pilots.append(Pilot(drill, await clients.enter_async_context(http)))
            await asyncio.gather(
                count_to_the_end(drill, database.url()), killer(drill), *(pilot.work() for pilot in pilots)
            )
        await check(drill, database, tasks, first.running())
    assert drill.kills["postgres"] >= 2, drill.kills
    assert drill.kills["gateway"] >= 2, drill.kills


def submit(gateway: RunningGateway, retriever_dn: str) -> list[Any]:
    """Tasks of 500 jobs."""
    tasks = []
    with gateway.client() as http:
        for n in range(JOBS // 500):
            credential = good(http.post("/v1/creds/register", json=registration(retriever_dn)))
            wanted = {
                "task_key": f"drill-{n}", "task_name": "drill", "owner": "alice", "queue": "DEMO", "ti": ti(),
                "credential_id": credential["credential_id"],
                "jobs": [spec(f"job-{n}-{i}", priority=i % 3) for i in range(500)],
            }  # fmt: skip
            tasks.append(good(http.post("/v1/job/submit", json=wanted)))
    return tasks


async def check(drill: Drill, database: Database, tasks: list[Any], gateway: RunningGateway) -> None:
    connection = await asyncpg.connect(database.url())
    try:
        jobs = {row["panda_id"]: row for row in await connection.fetch("SELECT * FROM panda_job")}
        log = await connection.fetch("SELECT * FROM panda_job_status_log ORDER BY panda_id, log_id")
        counted = await connection.fetch(counts_sql.COUNTS_OF, [task["task_id"] for task in tasks])
        lanes = await connection.fetch(counts_sql.LANE_COUNTS)
        attempts = await connection.fetch("SELECT panda_id, attempt_nr, status, ended_at FROM panda_attempt")
    finally:
        await connection.close()
    assert len(jobs) == JOBS
    assert Counter(job["status"] for job in jobs.values() if job["status"] not in FINAL) == {}
    assert [key for key, n in drill.given.items() if n > 1] == [], "an attempt was given twice"
    assert [key for key, n in drill.finished.items() if n > 1] == [], "a job was finished twice"
    assert {jobs[panda_id]["status"] for panda_id in drill.finished} == {"finished"}
    assert all(attempt["ended_at"] is not None for attempt in attempts)
    walks: dict[int, list[Any]] = {}
    for row in log:
        walks.setdefault(row["panda_id"], []).append(row)
    assert walks.keys() == jobs.keys()
    for panda_id, walk in walks.items():
        assert [row["new_status"] for row in walk if row["new_status"] in FINAL] == [jobs[panda_id]["status"]]
        for before, after in itertools.pairwise(walk):
            step = after["attempt_nr"] - before["attempt_nr"]
            assert before["new_status"] == after["old_status"]
            assert step in (0, 1)
            old, new = JobStatus(before["new_status"]), JobStatus(after["new_status"])
            assert may_follow(old, new, next_attempt=step == 1)
        assert walk[-1]["attempt_nr"] == jobs[panda_id]["attempt_nr"]
    recount = Counter((job["task_id"], job["status"]) for job in jobs.values())
    assert {(row["task_id"], row["status"]): row["n"] for row in counted} == dict(recount)
    assert [dict(row) for row in lanes] == []
    with gateway.client() as http:
        for task in tasks:
            assert good(http.get(f"/v1/task/{task['task_id']}/progress"))["done"] is True


def registration(retriever_dn: str) -> dict[str, Any]:
    return {
        "owner": "alice", "owner_dn": "/O=Test Grid/CN=Alice Analyst", "fqans": [], "server": "localhost:7512",
        "username": "alice", "cred_name": secrets.token_hex(16), "passphrase": secrets.token_urlsafe(32),
        "retriever_dn": retriever_dn, "expires_at": to_wire(utcnow() + timedelta(days=365)),
        "consent": {"queues": ["*"]},
    }  # fmt: skip
