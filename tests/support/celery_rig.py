"""Airflow with CeleryExecutor for tests: Redis, and workers of several host names that cannot reach the database.

``from support.celery_rig import airflow_rig, postgres`` gives the rig of :mod:`support.airflow_rig`, once for a module,
with ``worker-1`` and ``worker-2`` among its services; no worker is started. Connections are in a secrets backend of the
api-server and the triggerer: the workers have neither that nor the database.
"""

from __future__ import annotations

import configparser
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from airpanda_demo.processes import Service
from airpanda_demo.site import write_private
from support.airflow_rig import Rig, running_rig
from support.postgres import Server, postgres
from support.redis_server import Redis, running_redis

__all__ = ["WORKERS", "airflow_rig", "environment_of", "postgres"]
ROOT = Path(__file__).resolve().parents[2]
WORKERS = ("worker-1", "worker-2")
# What a worker's airflow.cfg has, as docs/operations.md says; all else is Airflow's default.
OPTIONS = {
    "core": ("dags_folder", "plugins_folder", "load_examples", "executor", "execution_api_server_url"),
    "celery": ("broker_url", "result_backend", "worker_concurrency"),
    "celery_broker_transport_options": ("visibility_timeout",),
    "workers": ("min_heartbeat_interval",),
    "logging": ("base_log_folder",),
    "airpanda": ("include_dir",),
}
# Sooner than anybody would want it on real machines: a test waits for these. But whoever is silent for so long is dead,
# and not only slow.
_SCHEDULER = """\
task_instance_heartbeat_timeout = 30
task_instance_heartbeat_timeout_detection_interval = 1
scheduler_health_check_threshold = 20
orphaned_tasks_check_interval = 5
"""
_TRIGGERER = """\
capacity = 1000
job_heartbeat_sec = 1
triggerer_health_check_threshold = 20
"""
_BACKEND = """\
[secrets]
backend = airflow.secrets.local_filesystem.LocalFilesystemBackend
backend_kwargs = {{"connections_file_path": "{}"}}
"""


@pytest.fixture(scope="module")
def airflow_rig(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """CeleryExecutor, all components running but the workers."""
    home = tmp_path_factory.mktemp("celery")
    with running_redis(home) as redis, running_rig(postgres, home, changes=_changes(redis, home)) as rig:
        # From here on the only place where Connections are.
        write_private(_secrets(home), json.dumps(rig.connections))
        rig.sql("DELETE FROM connection")
        for name in WORKERS:
            rig.services[name] = _worker(rig, redis, name)
        yield rig


def environment_of(rig: Rig, worker: str) -> dict[str, str]:
    """What the processes of a worker see."""
    return dict(rig.services[worker].environment)


def _secrets(home: Path) -> Path:
    return home / "secrets" / "connections.json"


def _changes(redis: Redis, home: Path) -> list[tuple[str, str]]:
    """airflow.cfg.example with what it has for Celery, taken in as its comment says; and a secrets backend."""
    _secrets(home).parent.mkdir()
    disabled = [line for line in (ROOT / "airflow.cfg.example").read_text().splitlines() if _is_disabled(line)]
    assert disabled, "airflow.cfg.example has nothing to take in"
    return [
        ("executor = LocalExecutor", "executor = CeleryExecutor"),
        *((f"\n{line}\n", f"\n{line[1:].replace('$AIRPANDA_BROKER_URL', redis.url)}\n") for line in disabled),
        ("task_instance_heartbeat_timeout = 300\n", _SCHEDULER),
        ("capacity = 1000\n", _TRIGGERER),
        ("\n[airpanda]\n", f"\n{_BACKEND.format(_secrets(home))}\n[airpanda]\n"),
    ]


def _is_disabled(line: str) -> bool:
    """Options that are commented out begin with ``#`` alone, sentences with ``# ``."""
    return len(line) > 1 and line[0] == "#" and not line[1].isspace()


def _worker(rig: Rig, redis: Redis, name: str) -> Service:
    home = rig.home / name
    home.mkdir()
    write_private(home / "airflow.cfg", _configuration(rig))
    environment = rig.environment | {
        "AIRFLOW_HOME": str(home),
        "HOME": str(home),
        "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT / 'tests'}",
        "AIRPANDA_TEST_HOST": name,
    }
    words = ["celery", "worker", "--celery-hostname", name, "--skip-serve-logs"]
    return rig.service(name, words, lambda: _answers(redis, name), environment)


def _configuration(rig: Rig) -> str:
    everything, own = (configparser.ConfigParser(interpolation=None) for _ in range(2))
    everything.read(rig.home / "airflow.cfg")
    for section, options in OPTIONS.items():
        own[section] = {option: everything[section][option] for option in options}
    own["core"]["hostname_callable"] = "support.worker_host.name"
    own["database"] = {"sql_alchemy_conn": "postgresql+psycopg2://nobody:none@127.0.0.1:1/none"}
    text = io.StringIO()
    own.write(text)
    return text.getvalue()


def _answers(redis: Redis, name: str) -> bool:
    with Celery(broker=redis.url) as app:
        return bool(app.control.ping(destination=[f"celery@{name}"], timeout=5.0))
