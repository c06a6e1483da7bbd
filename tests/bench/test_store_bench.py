"""The job store alone, in one process: what it adds to PostgreSQL, against pgbench with the same SQL in the same run.

A durable server of our own; store, pgbench and server share this machine's cores, so ratios say more than rates. Rounds
alternate between ours and pgbench's, and the medians count.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from bench import store_load as load
from bench.record import record
from support import pgbench
from support.dispatcher import World, job_database, make_settings, running, template_database
from support.postgres import Database, Server

from airpanda_demo.postgres import PrivatePostgres

__all__ = ["job_database", "template_database"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]
ROUNDS, SECONDS = 3, 4.0
CLIENTS = 16
PILOTS = 5000
"""Of each client, where that matters."""
MANY = int(os.environ.get("AIRPANDA_BENCH_JOBS", "1000000"))
HELD_S = float(os.environ.get("AIRPANDA_BENCH_HELD_S", "600"))
BAR_CLAIMS, BAR_BATCHED, BAR_LIFECYCLES = 0.5, 1.5, 0.5
BAR_DEEP, BAR_UNSUITABLE, BAR_HELD = 1.5, 3.0, 3.0
BAR_SUBMIT, BAR_PROGRESS_MS = 20_000, 5.0


@pytest.fixture(scope="session", name="postgres")
def _postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with PrivatePostgres(tmp_path_factory.mktemp("postgres"), durable=True) as server:
        yield server


@pytest.fixture(name="world")
async def _world(job_database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with running(job_database, make_settings(tmp_path), watchdog=True) as made:
        yield made


async def _alternate(ours: Callable[[], Awaitable[float]], theirs: Callable[[], float]) -> tuple[float, float]:
    """Medians of rounds that take turns."""
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        rates[0].append(await ours())
        rates[1].append(await asyncio.to_thread(theirs))
    return statistics.median(rates[0]), statistics.median(rates[1])


@pytest.mark.parametrize(("batch", "bar"), [(1, BAR_CLAIMS), (10, BAR_BATCHED)])
async def test_claims(world: World, tmp_path: Path, batch: int, bar: float) -> None:
    """Jobs leased a second; both are compared with pgbench's single claims."""
    await load.fill(world, 200_000)
    claimers = await load.claimers(world, CLIENTS)
    pgbench_claim, first = await load.claim_statement(world), await load.first_pilot(world)

    def theirs() -> float:
        return pgbench.run(world.database, [pgbench_claim], tmp_path, clients=CLIENTS, seconds=SECONDS, first=first)

    ours, limit = await _alternate(lambda: load.rate(claimers, SECONDS, batch=batch), theirs)
    record(
        f"store, claims of {batch}", ours, "jobs/s", against={"pgbench, single": round(limit), "bar": bar},
        ratio=ours / limit, conditions=f"{CLIENTS} clients, one process, 200 000 jobs at first, durable",
    )  # fmt: skip


async def test_lifecycles(world: World, tmp_path: Path) -> None:
    """Acquire, running, heartbeat, finished; each transition with its row in the status log."""
    await load.fill(world, 200_000)
    claimers = await load.claimers(world, CLIENTS)
    statements, first = await load.lifecycle_statements(world), await load.first_pilot(world)

    def theirs() -> float:
        return pgbench.run(world.database, statements, tmp_path, clients=CLIENTS, seconds=SECONDS, first=first)

    ours, limit = await _alternate(lambda: load.rate(claimers, SECONDS, whole=True), theirs)
    record(
        "store, lifecycles", ours, "jobs/s", against={"pgbench": round(limit), "bar": BAR_LIFECYCLES},
        ratio=ours / limit, conditions=f"{CLIENTS} clients, one process; durable",
    )  # fmt: skip


async def test_claim_latency(world: World) -> None:
    """p99 of a claim where there is much, where much of it fits nobody, and where vacuum can remove nothing.

    Each is measured in turns with a queue of 1 000 jobs of the same database, since a busy machine drifts; but what a
    held transaction does to both of them counts against what that queue took before. A pilot asks a few hundred times
    while a transaction is held, as one would that asks every few seconds for ten minutes: so there are many.
    """
    small, large = [await load.claimers(world, 4, queue, pilots=PILOTS) for queue in ("OTHER", "DEMO")]

    async def measure(name: str, bar: float, before: float = 0.0) -> float:
        few, many = [], []
        for _ in range(5):
            await load.fill(world, 600, queue="OTHER")
            few.append(await load.p99_ms(small, 1.2, rate=400))
            many.append(await load.p99_ms(large, 1.2, rate=400))
        against = {"1 000 activated": round(min(few), 3), "bar": bar}
        if before:
            against["1 000 activated, nothing held"] = round(before, 3)
        record(
            f"store, claim p99, {name}", min(many), "ms", against=against, ratio=min(many) / (before or min(few)),
            conditions="4 clients, 400 claims/s offered, least of 5 rounds in turns, durable",
        )  # fmt: skip
        return min(few)

    await load.fill(world, 1000, queue="OTHER")
    await load.fill(world, MANY)
    alone = await measure(f"{MANY} activated", BAR_DEEP)
    await load.fill(world, MANY // 10, priority=5000, memory_mib=8000)
    await measure(f"{MANY // 10} unsuitable at the head", BAR_UNSUITABLE)
    for writes in (False, True):
        async with load.held_transaction(world, writes=writes):
            await load.steady(large, MANY * 2 // 5, seconds=HELD_S)
            kind = "writing" if writes else "reading"
            await measure(f"{kind} transaction held for {HELD_S:.0f} s, {MANY * 2 // 5} claims", BAR_HELD, alone)


async def test_submit_and_progress(world: World) -> None:
    wanted = await load.submission(world, 100_000)
    started = time.perf_counter()
    task_id = await load.submit(world, wanted)
    rate = 100_000 / (time.perf_counter() - started)
    record(
        "store, submit", rate, "jobs/s", against={"bar": BAR_SUBMIT}, ratio=rate / BAR_SUBMIT,
        conditions="one submission of 100 000 jobs, validated already, durable",
    )  # fmt: skip
    claimers = await load.claimers(world, CLIENTS)
    times = []
    for _ in range(10):
        await load.churn(claimers, seconds=1)
        times.append(await load.timed_ms(world.services.reader.progress(task_id, owners=None)))
    middle, against = statistics.median(times), {"bar": BAR_PROGRESS_MS, "worst": round(max(times), 2)}
    record(
        "store, progress of 100 000 jobs", middle, "ms", against=against,
        ratio=middle / BAR_PROGRESS_MS, conditions="median of 10, each after a second of claims at full load",
    )  # fmt: skip
