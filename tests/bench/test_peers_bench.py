"""Our store beside procrastinate and PGQueuer: the same number of no-op jobs, the same server, in turns.

They take a job, run a function that does nothing, and note its end. Ours does what a pilot makes it do: it takes a job
under a lease with its owner's credential, and is told that it runs and that it has finished, each with its row in the
status log. Both in batches of the same size, one process each.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import store_load as load
from bench.record import record
from support.dispatcher import World, job_database, make_settings, running, template_database
from support.need import absent
from support.postgres import Database, Server

from airpanda.messages import AcquiredJob, JobReport
from airpanda_demo.postgres import PrivatePostgres

__all__ = ["job_database", "template_database"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]
HERE = Path(__file__).parent
JOBS = {"pgqueuer": 20_000, "procrastinate": 3_000}
ROUNDS, CLIENTS, BAR = 3, 16, 1.0


@pytest.fixture(scope="session", name="postgres")
def _postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with PrivatePostgres(tmp_path_factory.mktemp("postgres"), durable=True) as server:
        yield server


@pytest.fixture(name="world")
async def _world(job_database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with running(job_database, make_settings(tmp_path), watchdog=True) as made:
        yield made


@pytest.fixture(scope="session", name="python")
def _python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with the peers; ``AIRPANDA_BENCH_PEERS`` names an environment that has them already."""
    given = os.environ.get("AIRPANDA_BENCH_PEERS")
    place = Path(given) if given else tmp_path_factory.mktemp("peers") / "venv"
    if not given:
        subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=300)
        wanted = ["install", "--quiet", "--disable-pip-version-check", "-r", HERE / "requirements-peers.txt"]
        done = subprocess.run([place / "bin/python", "-m", "pip", *wanted], check=False, timeout=900)
        if done.returncode:
            absent("NOT MEASURED: tests/bench/requirements-peers.txt cannot be installed here")
    return str(place / "bin/python")


def theirs(python: str, server: Server, peer: str, batch: int) -> float:
    """One run of the peer in a fresh database."""
    name = server.create_database(f"peer_{secrets.token_hex(6)}")
    try:
        wanted = {"peer": peer, "dsn": server.url("postgresql", name), "jobs": JOBS[peer], "batch": batch}
        done = subprocess.run(
            [python, str(HERE / "peer_queues.py")],
            input=json.dumps(wanted), capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return float(json.loads(done.stdout.splitlines()[-1])["rate"])
    finally:
        server.drop_database(name)


def _report(job: AcquiredJob, **what: Any) -> JobReport:
    return JobReport(job_id=job.panda_id, attempt_nr=job.attempt_nr, token=job.token, **what)


async def ours(claimers: list[load.Claimer], jobs: int, batch: int) -> float:
    """So many jobs from their lease to their end, by all claimers together."""
    left = jobs

    async def work(claimer: load.Claimer) -> None:
        nonlocal left
        while left > 0:
            n = min(batch, left)
            left -= n
            given = await claimer.claim(n)
            assert len(given) == n, "the store ran out of jobs"
            for status, more in (("running", load.AS_ALICE), ("finished", {"trans_exit_code": 0})):
                reports = [_report(job, job_status=status, **more) for job in given]
                answers = await claimer.world.services.jobs.update_many(reports, pilot_id=claimer.pilot_id)
                assert not [each for each in answers if isinstance(each, Exception)]

    started = time.perf_counter()
    await asyncio.gather(*map(work, claimers))
    return jobs / (time.perf_counter() - started)


@pytest.mark.parametrize(("peer", "batch"), [("procrastinate", 10), ("pgqueuer", 10), ("pgqueuer", 100)])
async def test_beside_a_peer(world: World, postgres: Server, python: str, peer: str, batch: int) -> None:
    """Whole lives of jobs a second."""
    claimers = await load.claimers(world, CLIENTS)
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        await load.fill(world, JOBS[peer])
        rates[0].append(await ours(claimers, JOBS[peer], batch))
        rates[1].append(await asyncio.to_thread(theirs, python, postgres, peer, batch))
    mine, limit = statistics.median(rates[0]), statistics.median(rates[1])
    record(
        f"store beside {peer}, batches of {batch}", mine, "jobs/s", against={peer: round(limit), "bar": BAR},
        ratio=mine / limit,
        conditions=f"{JOBS[peer]} no-op jobs, taken and ended; ours with lease, credential, two reports and status log;"
        f" {CLIENTS} clients in one process, durable, medians of {ROUNDS} rounds in turns",
    )  # fmt: skip
