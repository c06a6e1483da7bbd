"""The gateway as a process of its own: real TLS, real proxies, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet
from support.dispatcher import job_database, make_settings, spec, template_database, ti
from support.gateway import QUEUE
from support.pki import Pki, pki
from support.postgres import Database, postgres

from airpanda.core.clock import to_wire, utcnow
from airpanda.dispatcher.tokens import Issuer
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.files import write_private
from airpanda.x509.proxy import create_proxy

__all__ = ["job_database", "pki", "postgres", "template_database"]
pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Gateway:
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    issuer: Issuer
    pki: Pki

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def client(self, proxy: Path | None = None) -> httpx.Client:
        context = ssl.create_default_context(capath=str(self.pki.ca_dir))
        if proxy is not None:
            context.load_cert_chain(proxy)
        return httpx.Client(base_url=self.url, verify=context, trust_env=False, timeout=60)

    def client_headers(self) -> dict[str, str]:
        token = self.issuer.client_token("tests", ["*"], ["*"], timedelta(hours=1), utcnow(), pilots=True)
        return {"Authorization": f"Bearer {token.reveal()}"}


@pytest.fixture
def environment(job_database: Database, tmp_path: Path) -> dict[str, str]:
    settings = make_settings(tmp_path)
    (tmp_path / "queues").mkdir()
    (tmp_path / "queues" / "DEMO.toml").write_text(QUEUE.format(name="DEMO"))
    return os.environ | {
        "PYTHONPATH": str(ROOT / "plugins"),
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": job_database.url("postgresql+psycopg2"),
        "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
        "AIRFLOW__AIRPANDA__SIGNING_KEY": str(settings.signing_key),
        "AIRFLOW__AIRPANDA__FILE_STORE": str(settings.file_store),
        "AIRFLOW__AIRPANDA__INCLUDE_DIR": str(tmp_path),
    }


def command(pki: Pki, *extra: str) -> list[str]:
    host = pki.host()
    options = ["--cert", str(host.cert), "--key", str(host.key), "--ca-dir", str(pki.ca_dir)]
    return [sys.executable, "-m", "airpanda.dispatcher.gateway", *options, *extra]


@pytest.fixture
def gateway(environment: dict[str, str], pki: Pki, tmp_path: Path) -> Iterator[Gateway]:
    port_file, log = tmp_path / "port", tmp_path / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(pki, "--port", "0", "--port-file", str(port_file), "--access-log"),
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        issuer = Issuer(Path(environment["AIRFLOW__AIRPANDA__SIGNING_KEY"]))
        yield Gateway(process, int(port_file.read_text()), log, issuer, pki)
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def make_proxy(pki: Pki, tmp_path: Path) -> Callable[..., Path]:
    """A file with a fresh proxy of one of the PKI's users."""

    def make(user: str, **options: object) -> Path:
        files = pki.user(user)
        credential = ProxyCredential.from_pem(files.cert.read_bytes() + files.key.read_bytes())
        proxy = create_proxy(credential, lifetime=timedelta(hours=1), now=utcnow(), **options)
        path = tmp_path / f"{user}-{time.monotonic_ns()}.proxy"
        write_private(path, proxy.to_pem().reveal())
        return path

    return make


def staged_job(gateway: Gateway, retriever_dn: str) -> str:
    """Submit one job whose credential this DN may retrieve; answer a fresh pilot's token."""
    with gateway.client() as http:
        headers = gateway.client_headers()
        credential = http.post(
            "/v1/creds/register",
            headers=headers,
            json={
                "owner": "alice",
                "owner_dn": "/O=Test Grid/CN=Alice",
                "server": "localhost:7512",
                "username": "alice",
                "cred_name": os.urandom(16).hex(),
                "passphrase": "canary-of-the-gateway-test",
                "retriever_dn": retriever_dn,
                "expires_at": to_wire(utcnow() + timedelta(hours=12)),
                "consent": {"queues": ["DEMO"]},
            },
        ).json()
        submitted = http.post(
            "/v1/job/submit",
            headers=headers,
            json={
                "task_key": os.urandom(8).hex(),
                "task_name": "t",
                "owner": "alice",
                "credential_id": credential["credential_id"],
                "queue": "DEMO",
                "ti": ti(),
                "jobs": [spec()],
            },
        )
        assert submitted.is_success, submitted.text
        batch = http.post("/v1/batch/intend", headers=headers, json={"queue": "DEMO", "n_pilots": 1}).json()
        assert batch["queue"]["queue"]["name"] == "DEMO"
        return str(batch["pilots"][0]["token"])


def acquire(gateway: Gateway, token: str, proxy: Path | None) -> httpx.Response:
    offer = {"site_name": "DEMO", "node": "wn1", "memory": 4000, "disk_space": 9000, "remaining_time": 7200}
    with gateway.client(proxy) as http:
        return http.post("/v1/pilot/acquire_jobs", json=offer, headers={"Authorization": f"Bearer {token}"})


def test_a_pilot_shows_its_proxy_and_gets_what_its_dn_may_retrieve(
    gateway: Gateway, make_proxy: Callable[..., Path]
) -> None:
    token = staged_job(gateway, gateway.pki.dn("pilot"))
    unproven = acquire(gateway, token, None)
    assert (unproven.status_code, "showed no proxy" in unproven.json()["detail"]) == (403, True)
    assert acquire(gateway, token, make_proxy("pilot2")).json()["jobs"] == []
    assert acquire(gateway, token, make_proxy("alice")).json()["jobs"] == []
    (job,) = acquire(gateway, token, make_proxy("pilot", limited=True)).json()["jobs"]
    assert job["credential"]["passphrase"] == "canary-of-the-gateway-test"

    log = gateway.log.read_text()
    assert "/v1/pilot/acquire_jobs" in log
    for secret in ("canary-of-the-gateway-test", token, job["token"]):
        assert secret not in log


def test_a_proxy_alone_or_a_strangers_proxy_opens_nothing(
    gateway: Gateway, make_proxy: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    assert acquire(gateway, "no-token", make_proxy("pilot")).status_code == 401

    token = staged_job(gateway, gateway.pki.dn("pilot"))
    stranger = Pki(tmp_path_factory.mktemp("strangers")).user("pilot")
    path = tmp_path / "stranger.pem"
    write_private(path, stranger.cert.read_bytes() + stranger.key.read_bytes())
    with pytest.raises(httpx.TransportError):
        acquire(gateway, token, path)


def test_old_tls_and_plain_http_are_refused(gateway: Gateway) -> None:
    context = ssl.create_default_context(capath=str(gateway.pki.ca_dir))
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("localhost", gateway.port), 5) as raw,
        pytest.raises(OSError, match=r"(?i)ssl|reset"),
    ):
        context.wrap_socket(raw, server_hostname="localhost")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://localhost:{gateway.port}/v1/health", trust_env=False)


async def test_sigterm_lets_running_requests_end(gateway: Gateway, make_proxy: Callable[..., Path]) -> None:
    token = staged_job(gateway, gateway.pki.dn("pilot"))
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow_body():  # type: ignore[no-untyped-def]
        yield b'{"site_name": "DEMO", "node": "wn1", "memory": 4000,'
        arrived.set()
        await go_on.wait()
        yield b'"disk_space": 9000, "remaining_time": 7200}'

    context = ssl.create_default_context(capath=str(gateway.pki.ca_dir))
    context.load_cert_chain(make_proxy("pilot"))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=gateway.url, verify=context, trust_env=False, timeout=60) as http:
        request = asyncio.create_task(http.post("/v1/pilot/acquire_jobs", content=slow_body(), headers=headers))
        await asyncio.wait_for(arrived.wait(), 60)
        await asyncio.sleep(0.3)
        gateway.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        go_on.set()
        response = await asyncio.wait_for(request, 60)
    assert response.status_code == 200
    assert len(response.json()["jobs"]) == 1
    assert await asyncio.to_thread(gateway.process.wait, 60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"AIRFLOW__CORE__FERNET_KEY": ""}, "fernet_key"),
        ({"AIRFLOW__AIRPANDA__SIGNING_KEY": "/nonexistent/key"}, "signing_key"),
        ({"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////tmp/x.db"}, "PostgreSQL"),
    ],
)
def test_a_wrong_set_up_is_one_sentence(
    environment: dict[str, str], pki: Pki, change: dict[str, str], says: str
) -> None:
    done = subprocess.run(
        command(pki, "--port", "0"), env=environment | change, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_one_sentence(environment: dict[str, str], pki: Pki) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            command(pki, "--port", port), env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr
