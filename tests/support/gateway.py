"""The gateway as a process of its own, over a test's database and PKI.

``with start_gateway(database, pki, directory) as gateway: ...``
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from cryptography.fernet import Fernet

from airpanda.core.clock import utcnow
from airpanda.dispatcher.tokens import Issuer
from airpanda.x509.files import write_private
from support.dispatcher import make_settings
from support.pki import Pki
from support.postgres import Database

ROOT = Path(__file__).resolve().parents[2]
QUEUE = """
[queue]
name = "{name}"
[ce]
kind = "local"
directory = "/var/lib/airpanda/pilots"
[pilot]
code = "/opt/airpanda/plugins"
dispatcher_url = "https://localhost:25443"
ca_dir = "/etc/grid-security/certificates"
proxy = "/etc/grid-security/pilot.proxy"
"""


@dataclass(frozen=True)
class RunningGateway:
    """A running gateway and what opens it."""

    port: int
    log: Path
    issuer: Issuer
    pki: Pki
    database: Database

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def http(self, proxy: Path | None = None, token: str | None = None) -> httpx.Client:
        """A client that shows this PEM file (certificate, key, chain), or nothing."""
        context = ssl.create_default_context(capath=str(self.pki.ca_dir))
        if proxy is not None:
            context.load_cert_chain(proxy)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, verify=context, trust_env=False, headers=headers, timeout=30)

    def client_token(self, name: str = "airflow", owners: tuple[str, ...] = ("*",)) -> str:
        return self.issuer.client_token(name, owners, ["*"], timedelta(hours=1), utcnow(), pilots=True).reveal()

    def client(self, name: str = "airflow", owners: tuple[str, ...] = ("*",)) -> httpx.Client:
        """A submitting client."""
        return self.http(token=self.client_token(name, owners))

    def as_pilot(self) -> httpx.Client:
        """A fresh pilot that shows the pilots' certificate."""
        shown = self.log.with_name("pilot.pem")
        if not shown.exists():
            cert, key = self.pki.user("pilot")
            write_private(shown, cert.read_bytes() + key.read_bytes())
        return self.http(shown, self.pilot()["token"])

    def pilot(self) -> dict[str, Any]:
        """A fresh pilot: its id and token."""
        with self.client() as http:
            batch = good(http.post("/v1/batch/intend", json={"queue": "DEMO", "n_pilots": 1}))
        pilot: dict[str, Any] = batch["pilots"][0]
        return pilot


def good(response: httpx.Response) -> Any:
    """The JSON of a successful answer."""
    assert response.is_success, response.text
    return response.json()


@contextmanager
def start_gateway(database: Database, pki: Pki, directory: Path) -> Iterator[RunningGateway]:
    """Ready to answer; killed at the end."""
    settings = make_settings(directory)
    (directory / "queues").mkdir()
    for name in ("DEMO", "OTHER"):
        (directory / "queues" / f"{name}.toml").write_text(QUEUE.format(name=name))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "plugins"),
        "AIRFLOW_HOME": str(directory / "airflow"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url("postgresql+psycopg2"),
        "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
        "AIRFLOW__AIRPANDA__SIGNING_KEY": str(settings.signing_key),
        "AIRFLOW__AIRPANDA__FILE_STORE": str(settings.file_store),
        "AIRFLOW__AIRPANDA__INCLUDE_DIR": str(directory),
    }
    port_file, log = directory / "port", directory / "gateway.log"
    argv = [sys.executable, "-m", "airpanda.dispatcher.gateway", "--port", "0", "--port-file", str(port_file)]
    argv += ["--cert", str(pki.host().cert), "--key", str(pki.host().key), "--ca-dir", str(pki.ca_dir)]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield RunningGateway(int(port_file.read_text()), log, Issuer(settings.signing_key), pki, database)
    finally:
        process.kill()
        process.wait(10)
