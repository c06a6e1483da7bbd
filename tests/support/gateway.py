"""The gateway as a process of its own, over a test's database and PKI.

``with start_gateway(database, pki, directory) as gateway: ...``
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
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

    def as_pilot(self, token: str | None = None) -> httpx.Client:
        """A pilot, a fresh one unless its token is given, that shows the pilots' certificate."""
        return self.http(self.pilots_certificate, token or self.pilot()["token"])

    @property
    def pilots_certificate(self) -> Path:
        """Certificate and key of the pilots in one file."""
        shown = self.log.with_name("pilot.pem")
        if not shown.exists():
            cert, key = self.pki.user("pilot")
            write_private(shown, cert.read_bytes() + key.read_bytes())
        return shown

    def as_pilot_async(self, token: str) -> httpx.AsyncClient:
        """A pilot with this token that shows the pilots' certificate, at whatever port of this machine."""
        context = ssl.create_default_context(capath=str(self.pki.ca_dir))
        context.load_cert_chain(*self.pki.user("pilot"))
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.AsyncClient(verify=context, trust_env=False, headers=headers, timeout=30)

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


@dataclass
class GatewayPlace:
    """Where a gateway runs, killed and started again on the same port as often as wanted."""

    database: Database
    pki: Pki
    directory: Path
    environment: dict[str, str]
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(
        cls, database: Database, pki: Pki, directory: Path, options: Mapping[str, str] = MappingProxyType({})
    ) -> GatewayPlace:
        """A fresh place with keys and queues of its own; ``options`` are those of ``[airpanda]``, in capitals."""
        directory.mkdir(exist_ok=True)
        settings = make_settings(directory)
        (directory / "queues").mkdir()
        for name in ("DEMO", "OTHER"):
            (directory / "queues" / f"{name}.toml").write_text(QUEUE.format(name=name))
        wanted = {"SIGNING_KEY": settings.signing_key, "FILE_STORE": settings.file_store, "INCLUDE_DIR": directory}
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "plugins"),
            "AIRFLOW_HOME": str(directory / "airflow"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url("postgresql+psycopg2"),
            "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
            **{f"AIRFLOW__AIRPANDA__{name}": str(value) for name, value in {**wanted, **options}.items()},
        }
        return cls(database, pki, directory, environment)

    def another(self, directory: Path) -> GatewayPlace:
        """One more gateway with the same keys and queues."""
        directory.mkdir()
        return GatewayPlace(self.database, self.pki, directory, self.environment)

    def start(self, *arguments: str) -> None:
        """Ready to answer."""
        port_file, log = self.directory / "port", self.directory / "gateway.log"
        port_file.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "airpanda.dispatcher.gateway", "--port", str(self.port), *arguments]
        argv += ["--port-file", str(port_file), "--ca-dir", str(self.pki.ca_dir)]
        argv += ["--cert", str(self.pki.host().cert), "--key", str(self.pki.host().key)]
        with log.open("ab") as output:
            self.process = subprocess.Popen(argv, env=self.environment, stdout=output, stderr=output)
        deadline = time.monotonic() + 90
        while not port_file.exists():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        self.port = int(port_file.read_text())

    def kill(self) -> None:
        """As by power loss. Harmless when it does not run."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def running(self) -> RunningGateway:
        issuer = Issuer(Path(self.environment["AIRFLOW__AIRPANDA__SIGNING_KEY"]))
        return RunningGateway(self.port, self.directory / "gateway.log", issuer, self.pki, self.database)


@contextmanager
def start_gateway(database: Database, pki: Pki, directory: Path) -> Iterator[RunningGateway]:
    """Ready to answer; killed at the end."""
    place = GatewayPlace.create(database, pki, directory)
    try:
        place.start()
        yield place.running()
    finally:
        place.kill()
