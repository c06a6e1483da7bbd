"""The gateway over HTTP with everything on, against a bare FastAPI + asyncpg endpoint with the same SQL, in one run.

One durable server, TLS with proxies of pilots for ours, plain HTTP for the bare endpoint; gateway, load generator and
PostgreSQL share this machine's cores. Rounds take turns, and the medians count.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from bench import store_load as load
from bench.record import record
from support.dispatcher import job_database, spec, template_database, ti
from support.gateway import ROOT, GatewayPlace, good
from support.pki import Pki, pki
from support.postgres import Database, Server

from airpanda_demo.postgres import PrivatePostgres

__all__ = ["job_database", "pki", "template_database"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]
ROUNDS, SECONDS, CONNECTIONS, MANY = 3, 4, 16, 256
BAR, BAR_LIFECYCLES, BAR_CLAIMS, BAR_MIB = 0.6, 600, 15 * 182, 200
STARTED = """
INSERT INTO panda_pilot (batch_id, queue, state) SELECT 0, 'DEMO', 'started' FROM generate_series(1, 1000)
RETURNING pilot_id
"""
FREE = {"PILOT_RATE": "0", "CLIENT_RATE": "0", "STRANGER_RATE": "0"}


@pytest.fixture(scope="session", name="postgres")
def _postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with PrivatePostgres(tmp_path_factory.mktemp("postgres"), durable=True) as server:
        yield server


@pytest.fixture(name="gateways")
def _gateways(job_database: Database, pki: Pki, tmp_path: Path) -> Iterator[list[GatewayPlace]]:
    first = GatewayPlace.create(job_database, pki, tmp_path / "one", FREE)
    both = [first, first.another(tmp_path / "two")]
    try:
        for each in both:
            each.start()
        submit(first, 150_000)
        yield both
    finally:
        for each in both:
            each.kill()


def submit(gateway: GatewayPlace, n: int) -> None:
    with gateway.running().client() as http:
        for first in range(0, n, 25_000):
            credential = good(http.post("/v1/creds/register", json=load.registration(gateway.pki.dn("pilot"))))
            job = {"argv": ["python3", "analysis.py"], "env": load.ENV, "memory_mib": 1500}
            wanted = {
                "task_key": f"k{first}", "task_name": "bench", "owner": "alice", "queue": "DEMO", "ti": ti(),
                "credential_id": credential["credential_id"],
                "jobs": [spec(f"job-{i}", **job) for i in range(25_000)],
            }  # fmt: skip
            good(http.post("/v1/job/submit", json=wanted, timeout=300))


def measure(wanted: dict[str, Any]) -> float:
    """Requests (or lifecycles) a second of one round."""
    done = subprocess.run(
        [sys.executable, str(Path(load.__file__).with_name("http_load.py"))],
        input=json.dumps(wanted), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return float(json.loads(done.stdout)["rate"])


def at_gateways(gateways: list[GatewayPlace], what: str, connections: int = CONNECTIONS) -> dict[str, Any]:
    """A round's description for ours."""
    running = gateways[0].running()
    return {
        "what": what, "ports": [each.port for each in gateways], "seconds": SECONDS,
        "tokens": [running.pilot()["token"] for _ in range(connections)],
        "ca_dir": str(running.pki.ca_dir), "certificate": [str(path) for path in running.pki.user("pilot")],
        "acquire": "/v1/pilot/acquire_jobs", "update": "/v1/pilot/update_job",
        "offer": {"site_name": "DEMO", **load.OFFER},
    }  # fmt: skip


@contextmanager
def bare(gateway: GatewayPlace, values: dict[str, Any]) -> Iterator[int]:
    """The bare endpoint's port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(Path(load.__file__).with_name("bare_server.py")), str(port)],
        stdin=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT / "plugins")},
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(values | {"dsn": gateway.database.url()}).encode())
    process.stdin.close()
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait(10)


async def test_gateway(gateways: list[GatewayPlace]) -> None:
    connection = await asyncpg.connect(gateways[0].database.url())
    lane = await connection.fetchval("SELECT lane_id FROM panda_lane")
    keys = await connection.fetchval("SELECT array_agg(DISTINCT sealed_by) FROM panda_credential")
    pilots = [row[0] for row in await connection.fetch(STARTED)]
    await connection.close()
    values = {"lane": lane, "start": [0, 0], "dn": gateways[0].pki.dn("pilot"), "keys": keys, "pilots": pilots}
    rates: dict[str, list[float]] = {}
    with bare(gateways[0], values) as port:
        for _ in range(ROUNDS):
            for what in ("claims", "heartbeats"):
                theirs = at_gateways(gateways[:1], what) | {
                    "ports": [port], "ca_dir": "", "acquire": "/acquire", "update": "/update",
                }  # fmt: skip
                rates.setdefault(f"bare {what}", []).append(measure(theirs))
                rates.setdefault(what, []).append(measure(at_gateways(gateways[:1], what)))
            for connections in (CONNECTIONS, MANY):
                for n in (1, 2):
                    wanted = at_gateways(gateways[:n], "lifecycles", connections)
                    rates.setdefault(f"lifecycles {connections}, {n}", []).append(measure(wanted))
    found = {name: statistics.median(each) for name, each in rates.items()}
    said = f"{CONNECTIONS} connections, TLS with pilots' certificates, durable; bare: plain HTTP, the same SQL"
    for what in ("claims", "heartbeats"):
        limit = found[f"bare {what}"]
        bars = {"bare FastAPI + asyncpg": round(limit), "bar": BAR}
        if what == "claims":
            bars["15 x PanDA's getJobs"] = BAR_CLAIMS
        record(f"gateway, {what}", found[what], "requests/s", against=bars, ratio=found[what] / limit, conditions=said)
    for connections in (CONNECTIONS, MANY):
        one, two = (found[f"lifecycles {connections}, {n}"] for n in (1, 2))
        said = f"{connections} connections, TLS with pilots' certificates, durable, four requests each"
        record(
            f"gateway, lifecycles, {connections} connections", one, "jobs/s", against={"bar": BAR_LIFECYCLES},
            ratio=one / BAR_LIFECYCLES, conditions=said,
        )  # fmt: skip
        record(
            f"gateway, two of them, lifecycles, {connections} connections", two, "jobs/s", against={"one": round(one)},
            ratio=two / one, conditions=said,
        )  # fmt: skip
    process = gateways[0].process
    assert process is not None
    peak = next(
        int(line.split()[1]) / 1024
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    record(
        "gateway, memory", peak, "MiB", against={"bar": BAR_MIB}, ratio=peak / BAR_MIB,
        conditions="resident, after submissions of 25 000 jobs and the rounds above",
    )  # fmt: skip
