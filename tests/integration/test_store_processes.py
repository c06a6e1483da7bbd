"""Many processes at one store: claimers that are killed, and watchdogs that do everything at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from support.dispatcher import (
    World,
    job_database,
    make_settings,
    running,
    template_database,
)
from support.gateway import ROOT
from support.postgres import Database, postgres

from airpanda.core.secret import Secret
from airpanda.core.settings import STATE_TIMEOUTS
from airpanda.db.sql import counts as counts_sql
from airpanda.dispatcher.watchdog import one_round
from airpanda.jobs.retention import Keep, Retention

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = pytest.mark.integration
KEY = Fernet.generate_key().decode()
CLAIMERS, JOBS, KILLS = 32, 600, 12


@pytest.fixture(name="world")
async def _world(job_database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with running(job_database, make_settings(tmp_path), fernet_keys=[Secret(KEY)]) as made:
        yield made


async def start(world: World, pilots: list[int]) -> tuple[asyncio.subprocess.Process, dict[int, int]]:
    """The claimers' parent, and the claimers: pilots by process."""
    environment = {"PYTHONPATH": f"{ROOT}/plugins:{ROOT}/include/demo:{ROOT}/tests", "PATH": "/usr/bin:/bin"}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "tests/support/claimers.py"), env=environment,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdin is not None
    assert parent.stdout is not None
    wanted = {
        "dsn": world.database.url(), "fernet_key": KEY, "pilots": pilots,
        "directory": str(world.settings.file_store), "signing_key": str(world.settings.signing_key),
    }  # fmt: skip
    parent.stdin.write(json.dumps(wanted).encode() + b"\n")
    await parent.stdin.drain()
    lines = [(await asyncio.wait_for(parent.stdout.readline(), 120)).split() for _ in pilots]
    return parent, {int(process): int(pilot) for process, pilot in lines}


async def first_to_claim(world: World, alive: dict[int, int]) -> int:
    """A process that has a job in hand, as soon as there is one."""
    async with asyncio.timeout(120):
        while not (rows := await world.sql("SELECT pilot_id FROM panda_job WHERE pilot_id IS NOT NULL LIMIT 1")):
            await asyncio.sleep(0.02)
    return next(process for process, pilot in alive.items() if pilot == rows[0]["pilot_id"])


async def waiting(world: World) -> int:
    return int((await world.sql("SELECT count(*) FROM panda_job WHERE status = 'activated'"))[0][0])


async def test_32_processes_and_kill_9_never_share_an_attempt(world: World) -> None:
    task = await world.submit(JOBS)
    pilots = [pilot.pilot_id for pilot in await world.pilots(CLAIMERS)]
    parent, alive = await start(world, pilots)
    chance, first = random.Random(9), task["first_panda_id"]
    try:
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.05, 0.3))
            process = chance.choice(sorted(alive))
            if len(alive) == CLAIMERS:  # where starts are slow, all might die before their first claim
                process = await first_to_claim(world, alive)
            os.kill(process, signal.SIGKILL)
            await world.sql(
                "UPDATE panda_job SET lease_expires_at = now() - interval '1 s', check_at = now() - interval '1 s'"
                " WHERE pilot_id = $1",
                alive.pop(process),
            )
            await asyncio.gather(*(world.services.upkeep.expire() for _ in range(2)))
        async with asyncio.timeout(120):
            while await waiting(world):
                await world.services.upkeep.expire()
                await asyncio.sleep(0.2)
    finally:
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        await asyncio.wait_for(parent.wait(), 30)

    given: list[tuple[int, int, int]] = []
    for pilot in pilots:
        file = world.settings.file_store / str(pilot)
        text = file.read_text() if file.exists() else ""
        given += [(int(a), int(b), pilot) for a, b in (line.split() for line in text.splitlines())]
    assert len({(panda_id, attempt) for panda_id, attempt, _ in given}) == len(given), "an attempt was given twice"
    attempts = await world.sql("SELECT panda_id, attempt_nr, pilot_id FROM panda_attempt")
    assert set(given) <= {tuple(row) for row in attempts}, "somebody was given what is another's"
    assert len(attempts) > JOBS, "nobody was killed with a job in hand"
    jobs = await world.sql("SELECT panda_id, status, attempt_nr FROM panda_job")
    assert {row["panda_id"] for row in jobs} == set(range(first, first + JOBS))
    assert {row["status"] for row in jobs} == {"sent"}
    assert Counter(row["panda_id"] for row in attempts) == {row["panda_id"]: row["attempt_nr"] for row in jobs}
    released = await world.sql("SELECT panda_id, attempt_nr FROM panda_credential_audit WHERE action = 'released'")
    assert len(released) == len({tuple(row) for row in released}) == len(attempts)


async def test_four_watchdogs_at_once_do_everything_once(world: World) -> None:
    """Silent pilots, jobs too long in a state or in the queue, a credential that is gone, counts, and the archive."""
    pilot = await world.pilot()
    await world.submit(20, key="silent")
    silent = await pilot.acquire(n_jobs=20)
    await world.submit(20, key="slow")
    slow = await pilot.acquire(n_jobs=20)
    await world.submit(20, key="old")
    for job in await pilot.acquire(n_jobs=20):
        await pilot.good_report(job, "running", "finished")
    await world.submit(20, key="never taken")
    revoked = (await world.credential())["credential_id"]
    await world.submit(20, key="revoked", credential_id=revoked)
    await world.good("POST", f"/v1/creds/{revoked}/revoke")
    for job in silent:
        await world.end_lease(job["panda_id"])
    keys = "SELECT task_id FROM panda_task WHERE task_key = $1"
    await world.sql(
        f"UPDATE panda_job SET changed_at = now() - interval '2 h', check_at = now() WHERE task_id = ({keys})", "slow"
    )
    for key in ("old", "never taken"):
        await world.sql(f"UPDATE panda_job SET changed_at = now() - interval '9 d' WHERE task_id = ({keys})", key)
    await world.sql("UPDATE panda_task SET created_at = now() - interval '9 d' WHERE task_key = 'old'")
    keep = Keep(timedelta(days=7), None, None)
    tidiers = [Retention(world.services.database, world.settings.file_store, keep) for _ in range(4)]

    async def tidy(retention: Retention) -> int:
        return sum([(await retention.step()).jobs_archived for _ in range(3)])

    taken = await asyncio.gather(*(one_round(world.services.upkeep, longest=STATE_TIMEOUTS) for _ in range(4)))
    archived = await asyncio.gather(*map(tidy, tidiers))
    assert (sum(taken), sum(archived)) == (40, 20)
    for job in silent + slow:
        view = await world.job(job["panda_id"])
        assert (view["status"], view["attempt_nr"], len(view["attempts"])) == ("activated", 2, 1)
        assert [error["code"] for error in view["attempts"][0]["errors"]] == [100 if job in silent else 102]
    log = await world.sql(
        "SELECT panda_id, count(*) AS n FROM panda_job_status_log WHERE actor = 'watchdog' GROUP BY panda_id"
    )
    assert Counter(row["n"] for row in log) == {1: 80}, "each was changed once"
    tasks = [row["task_id"] for row in await world.sql("SELECT task_id FROM panda_task")]
    counted = await world.sql(counts_sql.COUNTS_OF, tasks)
    recount = await world.sql(
        "SELECT task_id, status, count(*) AS n FROM (SELECT task_id, status FROM panda_job UNION ALL"
        " SELECT task_id, status FROM panda_archived_job) AS each GROUP BY task_id, status"
    )
    assert as_set(counted) == as_set(recount)


def as_set(rows: list[Any]) -> set[tuple[int, str, int]]:
    return {(row["task_id"], row["status"], row["n"]) for row in rows}
