"""Everything real but Airflow, for tests of pilots: PostgreSQL, gateway over mutual TLS, MyProxy, a worker node.

``gateway`` and ``myproxy`` can be killed and started again at the same place, as an operator or a crash would.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest
from cryptography.fernet import Fernet

import airpanda
from airpanda.computing.elements import ComputingElement, Handle, PilotBatch, PilotJobState, make_element
from airpanda.computing.queues import PandaQueue, load_queue
from airpanda.computing.ssh import SshLogin
from airpanda.core.clock import to_wire, utcnow
from airpanda.core.secret import Secret
from airpanda.dispatcher.tokens import Issuer
from airpanda.myproxy.staging import stage
from airpanda.pilot.bundle import write_bundle
from airpanda.x509.credential import ProxyCredential
from airpanda_demo.worker_node import GRID_SECURITY
from support.dispatcher import make_settings, ti
from support.launcher import Site, make_site, wait_for
from support.myproxy_server import CONFIG, ServerProcess, start_debian
from support.postgres import Database

PLUGINS = Path(airpanda.__file__).parent.parent
WRAPPER = PLUGINS.parent / "include/pilot/wrapper.sh"
PILOTS = "/home/pilot/pilots"
LEASE_S = 12
"""No pilot on a busy machine is silent for so long; whom a test kills is waited for as long."""
LOCAL = """\
kind = "local"
enter = ["{enter}"]
account = "pilot"
directory = "{directory}"
"""
QUEUE = """
[queue]
name = "DEMO"
identity_policy = "{policy}"
[ce]
{ce}
[pilot]
python = "{python}"
code = "{code}"
dispatcher_url = "https://localhost:{port}"
ca_dir = "{ca_dir}"
proxy = "{proxy}"
glexec = "{glexec}"
idle_limit_s = 8
benchmark_s = 0
"""


@dataclass(frozen=True)
class Place:
    """Where a chain's pilots run: the text of ``[ce]``, how it is reached, and whether it gives pilots their proxy.

    ``bare``: there is no launcher, and the policy allows that; it has its own Python, code, CAs and pilots' proxy.
    ``bundle``: where the node has the pilot in one file; else it has the checkout.
    """

    ce: str
    login: SshLogin | None = None
    credential: ProxyCredential | None = None
    brings_proxy: bool = False
    bare: Bare | None = None
    bundle: Path | None = None


@dataclass(frozen=True)
class Bare:
    """What pilots need on a machine that is no worker node of ours."""

    python: str
    code: Path
    ca_dir: Path
    proxy: Path


class Gateway:
    """One gateway process on a port that stays the same over restarts."""

    def __init__(self, directory: Path, argv: list[str], environment: dict[str, str]) -> None:
        self._directory, self._argv, self._environment = directory, argv, environment
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.start()
        try:
            wait_for(lambda: (directory / "port").exists() or not self.is_running, 180)
            assert self.is_running, self.log
            self.port = int((directory / "port").read_text())
        except BaseException:
            self.kill()
            raise

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return (self._directory / "gateway.log").read_text()

    def start(self) -> None:
        with (self._directory / "gateway.log").open("ab") as log:
            argv = [*self._argv, "--port", str(self.port), "--port-file", str(self._directory / "port")]
            self._process = subprocess.Popen(argv, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL: nothing can be put in order. A repeat is no error."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)


@dataclass
class Chain:
    """A client of the gateway, with what a test does through it."""

    site: Site
    myproxy: ServerProcess
    http: httpx.Client
    queue: PandaQueue
    database: Database
    gateway: Gateway
    file_store: Path
    place: Place
    tokens: list[str] = field(default_factory=list)
    elements: list[ComputingElement] = field(default_factory=list)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        response = self.http.request(method, path, json=body)
        assert response.is_success, response.text
        return response.json()

    def submit(self, who: str, *jobs: dict[str, Any]) -> dict[str, Any]:
        """Stage the owner's proxy, register it, submit jobs with it."""
        owner = ProxyCredential.from_files(*self.site.pki.user(who))
        retriever = self.site.pki.dn("pilot")
        staged = stage(self.myproxy.client(who), owner, retriever_dn=retriever, lifetime=timedelta(hours=5))
        registration = {
            "owner": who,
            "owner_dn": self.site.pki.dn(who),
            "fqans": ["/test"],
            "server": staged.server,
            "username": staged.username,
            "cred_name": staged.cred_name,
            "passphrase": staged.passphrase.reveal(),
            "retriever_dn": retriever,
            "expires_at": to_wire(staged.expires_at),
            "consent": {"queues": ["DEMO"]},
        }
        credential = self.call("POST", "/v1/creds/register", registration)
        submission = {
            "task_key": os.urandom(8).hex(),
            "task_name": "chain",
            "owner": who,
            "credential_id": credential["credential_id"],
            "queue": "DEMO",
            "ti": ti(),
            "jobs": list(jobs),
        }
        reply: dict[str, Any] = self.call("POST", "/v1/job/submit", submission)
        return reply

    def send_pilots(self, n: int) -> list[Handle]:
        """Intent, submission, record: as the operator does."""
        batch = self.call("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": n})
        element = self.element(PandaQueue.from_wire(batch["queue"]))
        tokens = {each["pilot_id"]: Secret(each["token"]) for each in batch["pilots"]}
        self.tokens += [each["token"] for each in batch["pilots"]]
        handles = element.submit(PilotBatch(batch["tag"], tokens)).handles
        record = {"state": "submitted", "ce": "local", "handles": {str(k): v for k, v in handles.items()}}
        self.call("POST", f"/v1/batch/{batch['batch_id']}/record", record)
        return list(handles.values())

    def element(self, queue: PandaQueue | None = None) -> ComputingElement:
        """The queue's computing element; closed with the chain."""
        made = make_element(queue or self.queue, WRAPPER, login=self.place.login, credential=self.place.credential)
        self.elements.append(made)
        return made

    def wait(self, task_id: int, limit_s: float = 180) -> dict[str, int]:
        found = wait_for(lambda: (p := self.call("GET", f"/v1/task/{task_id}/progress"))["done"] and p, limit_s)
        counts: dict[str, int] = found["counts"]
        return {status: n for status, n in counts.items() if n}

    def jobs(self, task_id: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", f"/v1/task/{task_id}/jobs?limit=100&offset=0")
        return found

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg2.connect(self.database.url()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    def logs(self, handles: list[Handle]) -> str:
        element = self.element()
        return "\n".join(element.fetch(handle).decode() for handle in handles)  # type: ignore[attr-defined]

    def pilots_end(self, handles: list[Handle]) -> set[PilotJobState]:
        element = self.element()
        wait_for(lambda: all(status.state.is_final for status in element.status(handles).values()), 180)
        return {status.state for status in element.status(handles).values()}


def put_bundle(site: Site, directory: Path) -> Path:
    """Bundle and checksum as a site gets them, where the node's accounts can read them; its path there."""
    bundle = write_bundle(directory / "airpanda.pyz")
    inside = site.put(bundle.path.read_bytes(), mode=0o644)
    checksum = site.node.path(inside.with_name(f"{inside.name}.sha256"))
    checksum.write_text(f"{bundle.sha256}  {inside.name}\n")
    checksum.chmod(0o644)
    return inside


def check_launchers_record(chain: Chain, job: dict[str, Any], attempt: dict[str, Any]) -> None:
    """What the store knows of this run is what the site's own record says of it."""
    label = f"PandaID={job['panda_id']} attempt={attempt['attempt_nr']}"
    site = [record for record in chain.site.node.records() if record["id"] == label][-1]
    told = attempt["launcher"]
    assert told["dn"] == job["owner_dn"]
    for name in ("dn", "fqans", "issuer", "serial", "fingerprint", "launcher", "mapping"):
        assert told[name] == site[name], name
    assert told["lease"] == (site["lease"] or "")
    assert (attempt["account_name"], attempt["account_uid"]) == (site["user"], site["uid"])
    assert (attempt["exit_code"], attempt["wall_s"], attempt["cpu_s"]) == (site["rc"], site["wall"], site["cpu"])
    assert attempt["max_rss_mib"] * 1024 >= site["maxrss_kb"]  # type: ignore[operator]


@contextmanager
def running_chain(
    site: Site,
    myproxy: ServerProcess,
    database: Database,
    directory: Path,
    place: Place | None = None,
    *,
    glexec: str = "",
    lease_s: int = LEASE_S,
) -> Iterator[Chain]:
    """A gateway for this database, a queue on this node, and a client that may do everything.

    Pilots are this node's processes unless ``place`` says otherwise. ``glexec`` is what they call, where it is not the
    client of the launcher's socket.
    """
    place = place or Place(LOCAL.format(enter=site.node.enter, directory=PILOTS))
    settings = make_settings(directory)
    (directory / "queues").mkdir()
    queue_file = directory / "queues" / "DEMO.toml"
    values = {"ce": place.ce, **_values_of(site, place, glexec)}
    queue_file.write_text(QUEUE.format(port=1, **values))
    environment = os.environ | {
        "PYTHONPATH": str(PLUGINS),
        "AIRFLOW_HOME": str(directory / "airflow"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url("postgresql+psycopg2"),
        "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
        "AIRFLOW__AIRPANDA__SIGNING_KEY": str(settings.signing_key),
        "AIRFLOW__AIRPANDA__FILE_STORE": str(settings.file_store),
        "AIRFLOW__AIRPANDA__INCLUDE_DIR": str(directory),
        "AIRFLOW__AIRPANDA__LEASE": str(lease_s),
        "AIRFLOW__AIRPANDA__HEARTBEAT_INTERVAL": "1",
    }
    host, key = site.pki.host()
    argv = [sys.executable, "-m", "airpanda.dispatcher.gateway"]
    argv += ["--cert", str(host), "--key", str(key), "--ca-dir", str(site.pki.ca_dir)]
    gateway = Gateway(directory, argv, environment)
    try:
        queue_file.write_text(QUEUE.format(port=gateway.port, **values))
        token = Issuer(settings.signing_key).client_token(
            "tests", ["*"], ["*"], timedelta(hours=1), utcnow(), pilots=True
        )
        with httpx.Client(
            base_url=f"https://localhost:{gateway.port}",
            headers={"Authorization": f"Bearer {token.reveal()}"},
            verify=ssl.create_default_context(capath=str(site.pki.ca_dir)),
            trust_env=False,
            timeout=30,
        ) as http:
            chain = Chain(site, myproxy, http, load_queue(queue_file), database, gateway, settings.file_store, place)
            yield chain
            for element in chain.elements:
                element.close()
    finally:
        gateway.kill()


def _values_of(site: Site, place: Place, glexec: str) -> dict[str, object]:
    if place.bare is not None:
        return {"policy": "OPTIONAL", "glexec": "", **vars(place.bare)}
    return {
        "policy": "REQUIRED",
        "python": sys.executable,
        "code": place.bundle or PLUGINS,
        "ca_dir": GRID_SECURITY / "certificates",
        "proxy": "" if place.brings_proxy else site.put_proxy("pilot"),
        "glexec": glexec or site.glexec,
    }


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A node that maps the pilots' own proxy, too: to Other."""
    for site in make_site():
        site.node.set_mapfile({**site.mapfile, site.pki.dn("pilot"): "other"})
        yield site


@pytest.fixture(scope="module")
def myproxy(site: Site) -> Iterator[ServerProcess]:
    """Debian's server for the site's people. Its configuration cannot name a directory whose path has spaces."""
    with start_debian(site.pki, CONFIG.replace("cert_dir {certs}\n", "")) as server:
        yield server


@pytest.fixture
def chain(site: Site, myproxy: ServerProcess, job_database: Database, tmp_path: Path) -> Iterator[Chain]:
    """Needs the fixtures of ``support.dispatcher`` and ``support.postgres`` beside it."""
    with running_chain(site, myproxy, job_database, tmp_path) as chain:
        yield chain
