"""Load on a job store inside this process, and the statements it runs, for pgbench."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
from support.dispatcher import PILOT_DN, World, ti
from support.pgbench import Statement

from airpanda.core.clock import to_wire, utcnow
from airpanda.db.sql import claims as claims_sql
from airpanda.db.sql import reports as sql
from airpanda.messages import JobReport, JobSpec, JobSubmission, PilotOffer

PILOTS = 64
BATCH = 100_000
OFFER = {"node": "wn1.example.org", "cores": 1, "memory": 2000, "disk_space": 4000, "remaining_time": 7200}
AS_ALICE: dict[str, Any] = {"account_name": "alice", "account_uid": 1000, "identity_switched": True}
"""What a pilot says with its first "running"; without it, it would be a heartbeat."""

ENV = {f"VARIABLE_{n}": "a value of some length" for n in range(8)}


@dataclass
class Claimer:
    """One client of the store: a pilot after the other."""

    world: World
    pilots: Iterator[int]
    queue: str = "DEMO"
    pilot_id: int = 0

    async def claim(self, n_jobs: int = 1) -> list[Any]:
        self.pilot_id = next(self.pilots)
        offer = PilotOffer(site_name=self.queue, n_jobs=n_jobs, **OFFER)
        jobs = await self.world.services.jobs.acquire(
            offer, pilot_id=self.pilot_id, queue=self.queue, pilot_dn=PILOT_DN
        )
        assert jobs is not None, "the pilot is not served"
        return jobs

    async def live(self) -> int:
        """One job from its lease to its end."""
        jobs = await self.claim()
        for job in jobs:
            for status, more in (("running", AS_ALICE), ("running", {}), ("finished", {"trans_exit_code": 0})):
                report = JobReport(
                    job_id=job.panda_id, attempt_nr=job.attempt_nr, token=job.token, job_status=status, **more
                )
                await self.world.services.jobs.update(report, pilot_id=self.pilot_id)
        return len(jobs)


async def submission(world: World, n: int, queue: str = "DEMO", **changes: Any) -> JobSubmission:
    """n jobs of alice, specifications of some 600 bytes each."""
    job = {"argv": ["python3", "analysis.py", "--events", "1000"], "env": ENV, "memory_mib": 1500, **changes}
    return JobSubmission(
        task_key=secrets.token_hex(8), task_name="bench", owner="alice", queue=queue, ti=ti(),
        credential_id=(await world.credential())["credential_id"],
        jobs=[JobSpec(job_name=f"job-{i}", **job) for i in range(n)],
    )  # fmt: skip


async def submit(world: World, wanted: JobSubmission) -> int:
    """The panda task's number."""
    submissions, queue = world.services.submissions, str(wanted.queue)
    return (await submissions.submit(wanted, queue=queue, client="tests", now=utcnow())).task_id


async def fill(world: World, n: int, queue: str = "DEMO", **changes: Any) -> None:
    """Submit n jobs in tasks of 100 000 at most."""
    for first in range(0, n, BATCH):
        await submit(world, await submission(world, min(n - first, BATCH), queue, **changes))


async def claimers(world: World, n: int, queue: str = "DEMO", *, pilots: int = 1) -> list[Claimer]:
    """n clients, each with so many pilots that take turns."""
    ids = await started_pilots(world, n * pilots, queue)
    return [Claimer(world, itertools.cycle(ids[first::n]), queue) for first in range(n)]


async def started_pilots(world: World, n: int, queue: str = "DEMO") -> list[int]:
    """Pilots that have said that they can work."""
    rows = await world.sql(
        "INSERT INTO panda_pilot (batch_id, queue, state) SELECT 0, $1, 'started' FROM generate_series(1, $2::int)"
        " RETURNING pilot_id",
        queue, n,
    )  # fmt: skip
    return [row["pilot_id"] for row in rows]


async def rate(claimers: Sequence[Claimer], seconds: float, *, batch: int = 1, whole: bool = False) -> float:
    """Jobs a second with all claimers busy."""
    done, end = 0, time.perf_counter() + seconds

    async def work(claimer: Claimer) -> None:
        nonlocal done
        while time.perf_counter() < end:
            n = await claimer.live() if whole else len(await claimer.claim(batch))
            assert n, "the store ran out of jobs"
            done += n

    started = time.perf_counter()
    await asyncio.gather(*map(work, claimers))
    return done / (time.perf_counter() - started)


async def p99_ms(claimers: Sequence[Claimer], seconds: float, *, rate: float) -> float:
    """99th percentile of a single claim's time at a fixed rate, which leaves the cores some room."""
    times: list[float] = []
    pause, end = len(claimers) / rate, time.perf_counter() + seconds

    async def work(claimer: Claimer) -> None:
        while time.perf_counter() < end:
            started = time.perf_counter()
            assert await claimer.claim()
            times.append(time.perf_counter() - started)
            await asyncio.sleep(max(0.0, pause - times[-1]))

    await asyncio.gather(*map(work, claimers))
    return sorted(times)[int(0.99 * len(times))] * 1000


async def churn(claimers: Sequence[Claimer], *, seconds: float) -> float:
    """Claims as fast as they go."""
    return await rate(claimers, seconds)


async def steady(claimers: Sequence[Claimer], n: int, *, seconds: float) -> None:
    """n claims, spread over so long; later ones are made up for."""

    async def work(claimer: Claimer) -> None:
        started, each = time.perf_counter(), n // len(claimers)
        for done in range(each):
            assert await claimer.claim(), "the store ran out of jobs"
            await asyncio.sleep(max(0.0, started + seconds * (done + 1) / each - time.perf_counter()))

    await asyncio.gather(*map(work, claimers))


async def timed_ms(wanted: Awaitable[Any]) -> float:
    started = time.perf_counter()
    await wanted
    return (time.perf_counter() - started) * 1000


@contextlib.asynccontextmanager
async def held_transaction(world: World, *, writes: bool) -> AsyncIterator[None]:
    """Somebody else's transaction that stays open: what it might still see, vacuum may not remove."""
    connection = await asyncpg.connect(world.database.url())
    try:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.fetchval("SELECT count(*) FROM panda_ban")
            if writes:
                await connection.fetchval("SELECT pg_current_xact_id()::text")
            yield
    finally:
        await connection.close()


def of_one(statement: str) -> str:
    """A statement for many at once, for one: its arrays become parameters."""
    return re.sub(r"\$(\d+)::(\w+)\[\]", r"ARRAY[$\1::\2]", statement)


async def first_pilot(world: World) -> str:
    """For pgbench: each client is a pilot of its own."""
    return f"\\set pilot {(await started_pilots(world, PILOTS))[0]} + :client_id"


async def claim_statement(world: World, *, gset: bool = False) -> Statement:
    """The claim as the store runs it, of the one lane there is, for one pilot of DEMO."""
    (lane,) = await world.sql("SELECT lane_id FROM panda_lane")
    keys = world.services.credentials.key_ids
    values = [
        lane["lane_id"], 0, 0, PILOT_DN, b"d" * 32, ":pilot", "150 seconds", OFFER["node"], keys, False, [], "DEMO",
        "120 seconds",
    ]  # fmt: skip
    statement = claims_sql.ACQUIRE
    for name in ("$5::bytea[]", "$6::bigint[]", "$8::text[]"):
        statement = statement.replace(name, of_one(name))
    return Statement(statement, values, gset=gset)


async def lifecycle_statements(world: World) -> list[Statement]:
    """What ``Claimer.live`` makes the store run."""
    key, lease = [":panda_id", ":attempt_nr"], [":pilot", b"d" * 32]
    # Alone they wait for their row, which another client's claim with an older snapshot may hold for a moment.
    alive, move = (of_one(each).replace(" SKIP LOCKED", "") for each in (sql.HEARTBEATS, sql.MOVES))
    return [
        await claim_statement(world, gset=True),
        Statement(move, [*key, "running", "", None, "alice", 1000, True, None, "[]", None, None, None, "", False, None,
                         *lease, ",sent,starting,", "150 seconds"], gset=True),
        Statement(alive, [*key, *lease, "running", "150 seconds"], gset=True),
        Statement(move, [*key, "finished", "", None, "", None, None, 0, "[]", None, None, None, "", True, None,
                         *lease, ",running,holding,", "150 seconds"], gset=True),
    ]  # fmt: skip


def registration(retriever_dn: str) -> dict[str, Any]:
    """What a client says of alice's credential."""
    return {
        "owner": "alice", "owner_dn": "/O=Test Grid/CN=Alice Analyst", "fqans": [], "server": "localhost:7512",
        "username": "alice", "cred_name": secrets.token_hex(16), "passphrase": secrets.token_urlsafe(32),
        "retriever_dn": retriever_dn, "expires_at": to_wire(utcnow() + timedelta(days=1)),
        "consent": {"queues": ["*"]},
    }  # fmt: skip
