"""No-op jobs through another queue on PostgreSQL, as its own benchmark runs them. Imports nothing of ours.

``python peer_queues.py`` in the environment of requirements-peers.txt, with ``{"peer", "dsn", "jobs", "batch"}`` as
JSON on its standard input; prints jobs a second, from the first one taken to the last one done, submission apart.

Source: pgqueuer ``tools/benchmark.py --strategy drain``; procrastinate ``tests/benchmarks/test_benchmark_async.py``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time


async def pgqueuer(dsn: str, jobs: int, batch: int) -> float:
    import asyncpg
    from pgqueuer.db import AsyncpgPoolDriver
    from pgqueuer.qm import QueueManager
    from pgqueuer.queries import Queries
    from pgqueuer.types import QueueExecutionMode

    async with asyncpg.create_pool(dsn, min_size=2, max_size=16) as pool:
        driver = AsyncpgPoolDriver(pool)
        queries = Queries(driver)
        await queries.install()
        for first in range(0, jobs, 1000):
            n = min(1000, jobs - first)
            await queries.enqueue(["noop"] * n, [None] * n, [0] * n)
        manager, done = QueueManager(queries), 0

        @manager.entrypoint("noop")
        async def noop(_job: object) -> None:
            nonlocal done
            done += 1

        started = time.perf_counter()
        await manager.run(batch_size=batch, mode=QueueExecutionMode.drain)
        took = time.perf_counter() - started
    assert done == jobs, f"{done} of {jobs}"
    return jobs / took


async def procrastinate(dsn: str, jobs: int, batch: int) -> float:
    from procrastinate import App, PsycopgConnector

    app, done = App(connector=PsycopgConnector(conninfo=dsn, max_size=16)), 0

    @app.task(name="noop")
    async def noop() -> None:
        nonlocal done
        done += 1

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for first in range(0, jobs, 1000):
            await noop.batch_defer_async(*({} for _ in range(min(1000, jobs - first))))
        started = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=batch, install_signal_handlers=False, listen_notify=False)
        took = time.perf_counter() - started
    assert done == jobs, f"{done} of {jobs}"
    return jobs / took


if __name__ == "__main__":
    wanted = json.loads(sys.stdin.readline())
    peer = {"pgqueuer": pgqueuer, "procrastinate": procrastinate}[wanted["peer"]]
    print(json.dumps({"rate": asyncio.run(peer(wanted["dsn"], wanted["jobs"], wanted["batch"]))}))
