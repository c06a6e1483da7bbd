"""The bare endpoint that the gateway is compared with: FastAPI and asyncpg around the same SQL, and nothing else.

``python bare_server.py PORT`` with a JSON document on standard input: the database and the claim's parameters.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import uvicorn
from fastapi import FastAPI

from airpanda.db.sql import claims as sql

LEASE = timedelta(seconds=150)
DIGEST = b"d" * 32
HEARTBEAT = """
UPDATE panda_job SET lease_expires_at = now() + $6::interval
WHERE panda_id = $1 AND attempt_nr = $2 AND pilot_id = $3 AND lease_digest = $4 AND status = $5
RETURNING lease_expires_at, command,
    (SELECT d.what FROM panda_debug d WHERE d.panda_id = $1 AND d.attempt_nr = $2 AND d.answered_at IS NULL) AS debug,
    set_config('synchronous_commit', 'off', true)
"""
# One at a time, in as little as that takes.


def make(wanted: dict[str, Any]) -> FastAPI:
    pools: list[Any] = []
    pilots = itertools.cycle(wanted["pilots"])

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        pools.append(await asyncpg.create_pool(wanted["dsn"], min_size=16, max_size=16, reset=_nothing))
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/acquire")
    async def acquire(offer: dict[str, Any]) -> dict[str, Any]:
        pilot = next(pilots)
        async with pools[0].acquire() as connection:
            rows = await connection.fetch(
                sql.ACQUIRE, wanted["lane"], *wanted["start"], wanted["dn"], [DIGEST], [pilot], LEASE,
                [offer["node"]], wanted["keys"], False, [], "DEMO", LEASE,
            )  # fmt: skip
        (row,) = rows
        job = {"panda_id": row["panda_id"], "attempt_nr": row["attempt_nr"], "spec": json.loads(row["spec"])}
        return {"jobs": [job | {"token": str(pilot), "owner_dn": row["owner_dn"]}]}

    @app.post("/update")
    async def update(report: dict[str, Any]) -> dict[str, Any]:
        key = (report["job_id"], report["attempt_nr"], int(report["token"]), DIGEST)
        async with pools[0].acquire() as connection:
            row = await connection.fetchrow(HEARTBEAT, *key, "sent", LEASE)
        return {"lease_expires_at": row["lease_expires_at"].isoformat(), "command": row["command"]}

    return app


async def _nothing(_connection: Any) -> None:
    pass


if __name__ == "__main__":
    uvicorn.run(make(json.load(sys.stdin)), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
