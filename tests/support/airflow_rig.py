"""A real Airflow for tests: api-server with the dispatcher below /panda, scheduler, triggerer, dag-processor, MyProxy.

Everything is real but the pilots: tests end jobs by :mod:`support.standin_pilots`. Use it by
``from support.airflow_rig import airflow_rig, postgres``; it is made once for a module, from ``airflow.cfg.example``.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from cryptography.fernet import Fernet

from airpanda.core.clock import utcnow
from airpanda.core.secret import Secret
from airpanda.core.settings import Settings
from airpanda.dispatcher.tokens import Issuer, create_key
from airpanda_demo.processes import Service, become_subreaper, descendants, end_descendants, guarded, wait_until_ready
from airpanda_demo.site import fill_in, write_private
from support.airflow_client import AirflowClient
from support.myproxy_server import ServerProcess, start_debian
from support.pki import Pki
from support.ports import held_port
from support.postgres import Database, Server, postgres
from support.standin_pilots import StandInPilots

__all__ = ["Rig", "airflow_rig", "postgres"]
ROOT = Path(__file__).resolve().parents[2]
QUEUES = ("DEMO", "OTHER")
OWNERS = ("alice", "bob")
# Not all of them: a pilot factory would send pilots to where there is nothing.
SHIPPED = ("production_campaign.py", "analysis_zmumu.py", "panda_watchdog.py")
_QUEUE = """
[queue]
name = "{name}"
[slot]
cores = 4
memory_mib = 8000
disk_mib = 8000
walltime_s = 7200
[ce]
kind = "local"
directory = "{home}/pilots"
[pilot]
code = "{plugins}"
dispatcher_url = "https://localhost:1"
ca_dir = "{ca_dir}"
proxy = "{home}/pilot.proxy"
"""


@dataclass
class Rig:
    """A running Airflow and what tests do with it."""

    home: Path
    database: Database
    pki: Pki
    port: int
    settings: Settings
    fernet_key: Secret[str]
    environment: dict[str, str]
    client: AirflowClient
    connections: dict[str, dict[str, object]] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    pilots: StandInPilots = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Straight to the database."""
        with contextlib.closing(psycopg2.connect(self.database.url())) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values)
            rows = cursor.fetchall() if cursor.description else []
            connection.commit()
        return rows

    def wait(self, what: Callable[[], Any], limit_s: float = 240.0, *, why: str = "") -> Any:
        """The first true answer."""
        deadline = time.monotonic() + limit_s
        while not (answer := what()):
            assert time.monotonic() < deadline, f"{why or 'it'} did not happen within {limit_s:.0f} s"
            time.sleep(0.1)
        return answer

    def jobs_of(self, run_id: str, task_id: str, dag_id: str = "grid") -> list[tuple[Any, ...]]:
        """(panda_id, status, attempt_nr, queue, command, credential_id) of a task instance, all its panda tasks."""
        return self.sql(
            "SELECT j.panda_id, j.status, j.attempt_nr, j.queue, j.command, j.credential_id"
            " FROM panda_job j JOIN panda_task t USING (task_id)"
            " WHERE t.ti->>'dag_id' = %s AND t.ti->>'run_id' = %s AND t.ti->>'task_id' = %s ORDER BY j.panda_id",
            dag_id,
            run_id,
            task_id,
        )

    def stop(self, name: str, sign: int = signal.SIGTERM) -> None:
        """End one component and everything below it."""
        service = self.services[name]
        assert service.process is not None
        for process in descendants(service.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, sign)
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(90)

    def start(self, *names: str) -> None:
        """Start components and wait until they are ready; one that was stopped starts anew."""
        for name in names:
            self.services[name].start()
        wait_until_ready([self.services[name] for name in names], told=lambda _name: None)

    def airflow(self, *words: str) -> str:
        """One Airflow command; its output."""
        argv = [sys.executable, "-m", "airflow", *words]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, f"airflow {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def service(
        self,
        name: str,
        words: Sequence[str],
        ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
    ) -> Service:
        """A component, not started: ``airflow`` and these words, with its output in the log of this name."""
        argv = guarded([sys.executable, "-m", "airflow", *words])
        return Service(name, argv, self.home / "logs" / f"{name}.log", environment or self.environment, ready, 400)

    def lose(self, name: str) -> None:
        """End one component as a machine that loses its power: all of its processes in the same moment."""
        service = self.services[name]
        assert service.process is not None
        lost = {process.pid for process in descendants(service.process.pid)}
        assert lost, f"{name} does not run"
        for sign in (signal.SIGSTOP, signal.SIGKILL):
            for pid in lost:
                with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(pid, sign)
        service.process.wait(60)

    def connect(self, connections: dict[str, dict[str, object]]) -> None:
        """Import Connections; they replace those of the same name."""
        self.connections |= connections
        path = self.home / "connections.json"
        write_private(path, json.dumps(connections))
        self.airflow("connections", "import", "--overwrite", str(path))
        path.unlink()


@pytest.fixture(scope="module")
def airflow_rig(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """LocalExecutor, all components running."""
    with running_rig(postgres, tmp_path_factory.mktemp("airflow")) as rig:
        yield rig


@contextlib.contextmanager
def running_rig(
    postgres: Server, home: Path, *, changes: Sequence[tuple[str, str]] = (), more_dags: Sequence[str] = ()
) -> Iterator[Rig]:
    """A whole Airflow in ``home``.

    ``changes``: lines of airflow.cfg.example and what stands there instead. ``more_dags``: files below dags that are
    there, too.
    """
    become_subreaper()
    name = postgres.create_database(f"t_{secrets.token_hex(6)}")
    pki = Pki(home / "pki")
    with start_debian(pki) as myproxy, held_port() as port:
        rig = _make(Database(postgres, name), pki, home, port, changes, [*SHIPPED, *more_dags])
        try:
            _prepare(rig, myproxy)
            for service in rig.services.values():
                service.start()
            wait_until_ready(list(rig.services.values()), told=lambda _name: None)
            rig.client.login()
            with StandInPilots(rig.database, rig.settings, rig.fernet_key, QUEUES) as rig.pilots:
                yield rig
        finally:
            rig.client.close()
            end_descendants_of(rig)
            postgres.drop_database(name)


def end_descendants_of(rig: Rig) -> None:
    """Stop the components, and nothing else that this process has started."""
    for service in rig.services.values():
        service.terminate()
    for service in rig.services.values():
        if service.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                service.process.wait(20)
            if service.process.poll() is None:
                end_descendants(service.process.pid)
                service.process.kill()
                service.process.wait(10)


def _make(
    database: Database, pki: Pki, home: Path, port: int, changes: Sequence[tuple[str, str]], dags: Sequence[str]
) -> Rig:
    include = home / "include"
    (include / "queues").mkdir(parents=True)
    for folder in ("physics", "pilot"):
        (include / folder).symlink_to(ROOT / "include" / folder)
    for queue in QUEUES:
        text = _QUEUE.format(name=queue, home=home, plugins=ROOT / "plugins", ca_dir=pki.ca_dir)
        (include / "queues" / f"{queue}.toml").write_text(text)
    create_key(home / "signing.pem")
    fernet_key, password = Secret(Fernet.generate_key().decode()), Secret(secrets.token_urlsafe(12))
    values = {
        "AIRPANDA_CHECKOUT": str(ROOT),
        "AIRPANDA_HOME": str(home),
        "AIRPANDA_INCLUDE": str(include),
        "AIRPANDA_DATABASE_URL": database.url("postgresql+psycopg2"),
        "AIRPANDA_FERNET_KEY": fernet_key.reveal(),
        "AIRPANDA_JWT_SECRET": secrets.token_urlsafe(64),
        "AIRPANDA_API_SECRET": secrets.token_urlsafe(64),
        "AIRPANDA_API_PORT": str(port),
    }
    text = fill_in((ROOT / "airflow.cfg.example").read_text(), values)
    for old, new in (
        (f"dags_folder = {ROOT / 'dags'}", f"dags_folder = {home / 'dags'}"),
        ("min_file_process_interval = 30", "min_file_process_interval = 5"),
        *changes,
    ):
        assert old in text, f"airflow.cfg.example has no line {old!r}"
        text = text.replace(old, new)
    write_private(home / "airflow.cfg", text)
    write_private(home / "passwords.json", json.dumps({"admin": password.reveal()}))
    (home / "dags").mkdir()
    (home / "dags" / "tests").symlink_to(ROOT / "tests" / "support" / "airflow_dags")
    for name in dags:
        (home / "dags" / Path(name).name).symlink_to(ROOT / "dags" / name)
    (home / "logs").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "AIRFLOW_HOME": str(home),
        "PYTHONPATH": str(ROOT / "plugins"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_PROXY": "*",
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }
    settings = Settings(home / "signing.pem", home / "files", include)
    client = AirflowClient(f"http://127.0.0.1:{port}", "admin", password)
    return Rig(home, database, pki, port, settings, fernet_key, environment, client)


def _prepare(rig: Rig, myproxy: ServerProcess) -> None:
    rig.airflow("db", "migrate")
    token = Issuer(rig.settings.signing_key).client_token(
        "airflow", ["*"], ["*"], timedelta(hours=6), utcnow(), pilots=True
    )
    http = {"conn_type": "http", "host": "127.0.0.1", "port": rig.port, "schema": "http"}
    there = {"ca_dir": str(rig.pki.ca_dir), "retriever_dn": rig.pki.dn("pilot")}
    connections: dict[str, dict[str, object]] = {
        "panda_default": {**http, "password": token.reveal(), "extra": {"base_path": "/panda"}},
        "myproxy_default": {"conn_type": "generic", "host": "localhost", "port": myproxy.port, "extra": there},
    }
    for owner in OWNERS:
        cert, key = rig.pki.user(owner)
        extra = {"certificate_file": str(cert), "key_file": str(key)}
        connections[f"owner_{owner}"] = {"conn_type": "generic", "extra": extra}
    rig.connect(connections)
    rig.services = _services(rig)


def _services(rig: Rig) -> dict[str, Service]:
    server = ["api-server", "--host", "127.0.0.1", "--port", str(rig.port)]
    healthy = rig.client.is_healthy
    services = (
        rig.service("api-server", server, rig.client.is_answering),
        rig.service("scheduler", ["scheduler", "--skip-serve-logs"], lambda: healthy("scheduler")),
        rig.service("triggerer", ["triggerer", "--skip-serve-logs"], lambda: healthy("triggerer")),
        rig.service("dag-processor", ["dag-processor"], lambda: healthy("dag_processor")),
    )
    return {service.name: service for service in services}
