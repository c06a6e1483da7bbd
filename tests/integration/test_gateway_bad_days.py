"""A gateway that ends, that is asked nonsense, and whose pilots' clocks are wrong: real TLS, real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg2
import pytest
from bench.store_load import registration
from support.dispatcher import spec, template_database, ti
from support.gateway import GatewayPlace, RunningGateway, good
from support.pki import Pki, pki
from support.postgres import Database, Server, postgres

from airpanda.core import clock
from airpanda.core.secret import Secret
from airpanda.pilot import client as pilot_client
from airpanda.pilot.client import DispatcherClient
from airpanda.pilot.wire import Report

__all__ = ["pki", "postgres", "template_database"]
pytestmark = pytest.mark.integration
OFFER = {"site_name": "DEMO", "node": "wn1", "cores": 4, "memory": 8000, "disk_space": 8000, "remaining_time": 7200}


@pytest.fixture(scope="module", name="place")
def _place(
    postgres: Server, template_database: Database, pki: Pki, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayPlace]:
    name = postgres.create_database(f"t_{os.urandom(6).hex()}", template=template_database.name)
    place = GatewayPlace.create(Database(postgres, name), pki, tmp_path_factory.mktemp("gateway"))
    try:
        place.start("--access-log", "--drain-wait", "8")
        yield place
    finally:
        place.kill()
        postgres.drop_database(name)


@pytest.fixture(name="gateway")
def _gateway(place: GatewayPlace) -> RunningGateway:
    return place.running()


def submit(gateway: RunningGateway, n: int = 1) -> Any:
    with gateway.client() as http:
        credential = good(http.post("/v1/creds/register", json=registration(gateway.pki.dn("pilot"))))
        wanted = {
            "task_key": os.urandom(8).hex(), "task_name": "t", "owner": "alice", "queue": "DEMO", "ti": ti(),
            "credential_id": credential["credential_id"], "jobs": [spec(f"job-{i}") for i in range(n)],
        }  # fmt: skip
        return good(http.post("/v1/job/submit", json=wanted))


@pytest.mark.parametrize("skew", [timedelta(days=1), timedelta(days=-1)], ids=["a day ahead", "a day behind"])
def test_a_pilots_clock_that_is_wrong_by_a_day_changes_nothing(
    gateway: RunningGateway, skew: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pilot's own client, from its first exchange on; the lease is as long as for everybody."""

    def now() -> datetime:
        return clock.utcnow() + skew

    monkeypatch.setattr(pilot_client, "utcnow", now)
    task = submit(gateway)
    client = DispatcherClient(
        gateway.url, Secret(gateway.pilot()["token"]),
        ca_dir=str(gateway.pki.ca_dir), proxy=str(gateway.pilots_certificate), stop=threading.Event(),
    )  # fmt: skip
    with contextlib.closing(client):
        client.greet()
        (job,) = client.acquire(OFFER).jobs
        assert 140 < client.seconds_until(job.lease_expires_at) < 152
        for status in ("starting", "running", "running", "finished"):
            reply = client.update(Report(job, status, "wn1"))
            assert reply.command == ""
    with gateway.client() as http:
        view = good(http.get(f"/v1/job/{task['first_panda_id']}"))
    (attempt,) = view["attempts"]
    assert (view["status"], attempt["attempt_nr"]) == ("finished", 1)
    assert abs(clock.from_wire(attempt["ended_at"]) - clock.utcnow()) < timedelta(minutes=5)


# --- nonsense, at every route that takes a body ------------------------------------------------------------------

DEEP = b"[" * 100_000
NONSENSE = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    DEEP,
    b'{"a":' * 100_000,
    b'{"name": ' + DEEP[:50_000] + b"]" * 50_000 + b"}",
    b"\xff\xfe\x00",
    b'{"surplus_field": 1}',
    b'{"reason": "a\\u0000b", "probe": {"x": "\\u0000"}, "name": "\\ud800", "kind": "dn", "dn": "/CN=\\u0000"}',
    b'{"reason": 1e999, "task_key": NaN, "weight": Infinity, "n_pilots": 99999999999999999999999}',
    b"{" + b'"surplus": "x",' * 20_000 + b'"surplus": "x"}',
]


def routes_with_a_body(gateway: RunningGateway) -> list[str]:
    with gateway.client() as http:
        document = good(http.get("/v1/openapi.json"))
    return [
        path.replace("{queue}", "DEMO").format_map(dict.fromkeys(("panda_id", "task_id", "batch_id", "pilot_id",
                                                                  "rule_id", "credential_id", "number"), 1))
        for path, item in document["paths"].items()
        if "requestBody" in item.get("post", {})
    ]  # fmt: skip


def test_nonsense_is_the_callers_error_everywhere(gateway: RunningGateway) -> None:
    paths = routes_with_a_body(gateway)
    assert len(paths) > 15
    headers = {"Content-Type": "application/json"}
    with gateway.client() as as_client, gateway.as_pilot() as as_pilot:
        for path in paths:
            http = as_pilot if path.startswith(("/v1/pilot/", "/v1/owner/")) else as_client
            for body in NONSENSE:
                answer = http.post(path, content=body, headers=headers)
                assert 400 <= answer.status_code < 500, (path, body[:60], answer.text)
                assert answer.headers["content-type"] == "application/problem+json", (path, body[:60])
                assert answer.json()["status"] == answer.status_code


def test_the_access_log_shows_no_secret(gateway: RunningGateway) -> None:
    """Wherever a caller puts one: header, body, query, path; in good requests and in refused ones."""
    submit(gateway)
    pilot = gateway.pilot()
    token = pilot["token"]
    with gateway.as_pilot(token) as http:
        (job,) = good(http.post("/v1/pilot/acquire_jobs", json=OFFER))["jobs"]
        secrets = [token, job["token"], job["credential"]["passphrase"]]
        for secret in secrets:
            http.get("/v1/health", params={"token": secret})
            http.get(f"/v1/job/get_status?job_ids={secret}", headers={"X-Airpanda-Lease": secret})
            http.get(f"/v1/file/1/{secret}")
            http.get(f"/{secret}")
            http.post(f"/v1/pilot/update_job?access_token={secret}", json={"token": secret, "surplus": secret})
            http.request(f"{secret[:20]}", "/v1/health")
            http.post("/v1/bans", headers={"Authorization": f"Bearer {secret}x"}, json={"dn": secret})
    time.sleep(0.3)
    log = gateway.log.read_text()
    assert "/v1/pilot/update_job HTTP" in log
    assert '"GET /v1/health HTTP/1.1" 200' in log
    for secret in secrets:
        assert secret not in log
        assert secret[:30] not in log


# --- the end: last, since nothing comes after it -----------------------------------------------------------------


def test_a_gateway_that_ends_says_so_first_and_serves_on(place: GatewayPlace) -> None:
    gateway = place.running()
    task = submit(gateway)
    assert place.process is not None
    with gateway.as_pilot() as pilot, gateway.client() as http:
        assert good(http.get("/v1/ready"))["status"] == "ready"
        (job,) = good(pilot.post("/v1/pilot/acquire_jobs", json=OFFER))["jobs"]
        place.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 30
        while (ready := http.get("/v1/ready")).status_code == 200:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert ready.status_code == 503
        assert int(ready.headers["retry-after"]) >= 1
        assert "about to end" in ready.json()["detail"]
        with gateway.client() as fresh:  # a new connection: the load balancer has not looked yet
            assert good(fresh.get("/v1/health")) == {"status": "ok"}
        for status in ("starting", "running", "finished"):
            report = {"job_id": job["panda_id"], "attempt_nr": 1, "token": job["token"], "job_status": status}
            good(pilot.post("/v1/pilot/update_job", json=report))
    assert place.process.wait(40) in (0, -signal.SIGTERM)
    with pytest.raises(httpx.TransportError), gateway.client() as http:
        http.get("/v1/health")
    connection = psycopg2.connect(place.database.url())
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT status FROM panda_job WHERE panda_id = %s", (task["first_panda_id"],))
            assert cursor.fetchall() == [("finished",)]
    finally:
        connection.close()


def test_a_second_signal_does_not_wait(place: GatewayPlace) -> None:
    place.kill()
    place.start("--drain-wait", "600")
    assert place.process is not None
    place.process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert place.process.poll() is None
    place.process.send_signal(signal.SIGTERM)
    assert place.process.wait(40) in (0, -signal.SIGTERM)
