"""The demonstration as its user starts it: by ``make``, in a checkout of one's own, and seen from outside.

Its directory stays between test runs, so that the packages are installed once on a machine.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import psycopg2.extensions
from cryptography.fernet import Fernet

from airpanda_demo.processes import Process, descendants, processes
from support.canary import Canaries
from support.need import absent

ROOT = Path(__file__).resolve().parents[2]
BASE = Path("/var/tmp/airpanda-tests")
START_S, STOP_S = 800.0, 180.0
_CHECKOUT = (
    "Makefile",
    "airflow.cfg.example",
    "requirements.txt",
    "requirements-demo.txt",
    "dags",
    "plugins",
    "include",
)
_PASSED_ON = re.compile(r"PIP_\w+|https?_proxy|no_proxy|SSL_CERT_\w+|REQUESTS_CA_BUNDLE", re.IGNORECASE)

# $1 a passwd line, $2 uid, $3 working directory; the rest is the command. Its account exists in here only.
_AS_ORDINARY_USER = """
set -eu
line=$1 uid=$2 directory=$3
shift 3
mount -t tmpfs -o mode=0755 accounts /mnt
{ cat /etc/passwd; echo "$line"; } >/mnt/passwd
{ cat /etc/group; echo "${line%%:*}:x:$uid:"; } >/mnt/group
mount --bind /mnt/passwd /etc/passwd
mount --bind /mnt/group /etc/group
cd "$directory"
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs -- "$@"
"""


@dataclass(frozen=True)
class User:
    """Who starts the demonstration, with which interpreter. ``uid`` None: whoever runs the tests."""

    home: Path
    python: str
    uid: int | None = None

    def command(self, directory: Path, argv: Sequence[str]) -> list[str]:
        if self.uid is None:
            return ["env", "-C", str(directory), *argv]
        line = f"demouser:x:{self.uid}:{self.uid}::{self.home}:/bin/sh"
        outer = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _AS_ORDINARY_USER, "as-user"]
        return [*outer, line, str(self.uid), str(directory), *argv]


@contextlib.contextmanager
def reachable_directory() -> Iterator[Path]:
    """A new directory that other accounts can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="airpanda-test-", dir="/var/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def make_home(path: Path, *, uid: int | None = None) -> Path:
    """A 0700 home with a copy of the checkout in ``a checkout``; the tests' own DAGs are in it too."""
    checkout = path / "a checkout"
    checkout.mkdir(parents=True)
    for name in _CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, checkout / name)
    for dag in (ROOT / "tests" / "e2e" / "dags").glob("*.py"):
        shutil.copyfile(dag, checkout / "dags" / dag.name)
    if uid is not None:
        subprocess.run(["chown", "-R", f"{uid}:{uid}", str(path)], check=True)
    path.chmod(0o700)
    return checkout


def own_python() -> str:
    """The interpreter behind the tests', with pip."""
    return _usable(str(Path(sys.base_prefix, "bin", f"python3.{sys.version_info[1]}")), "the tests' own Python")


def system_python() -> str:
    """An interpreter that every account can read."""
    return _usable("/usr/bin/python3", "Debian's package python3-pip")


def _usable(python: str, missing: str) -> str:
    question = "import sys, pip, venv; sys.exit(sys.version_info[:2] != (3, 11))"
    if not Path(python).exists() or subprocess.run([python, "-c", question], capture_output=True).returncode != 0:
        absent(f"NOT TESTED: {python} is no Python 3.11 with pip and venv; install {missing}")
    return python


@dataclass
class Demo:
    """One start of the demonstration."""

    directory: Path
    log: Path
    process: subprocess.Popen[bytes]
    family: dict[int, Process] = field(default_factory=dict)

    @classmethod
    def start(cls, target: str, user: User, checkout: Path, directory: Path, log: Path, **variables: str) -> Demo:
        """``make TARGET``; the output goes into ``log``."""
        settings = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
        settings |= {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(user.home), "LANG": "C.UTF-8"}
        settings |= {"AIRPANDA_DEMO_DIR": str(directory), **variables}
        with log.open("wb") as output:
            process = subprocess.Popen(
                user.command(checkout, ["make", target, f"PYTHON={user.python}"]),
                env=settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(directory, log, process)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def look(self) -> None:
        """Remember who belongs to it now."""
        for process in descendants(self.process.pid):
            self.family[process.pid] = process

    def left(self) -> list[int]:
        """Processes that belonged to it and still run."""
        now = processes()
        same = [now[pid] for pid, was in self.family.items() if pid in now and now[pid].start == was.start]
        return [process.pid for process in same if process.state != "Z"]

    def wait_for(self, words: str, timeout_s: float = START_S) -> None:
        """Until it says this."""
        self._wait(lambda: words in self.text, timeout_s, words)

    def wait_until_ready(self) -> dict[str, Any]:
        """What ``ready.json`` says."""
        path = self.directory / "ready.json"
        self._wait(path.exists, START_S, path.name)
        return dict(json.loads(path.read_text()))

    def _wait(self, is_true: Any, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_true():
            self.look()
            if self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.process.returncode} before {what!r}:\n{self.text[-3000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {what!r} after {timeout_s} s:\n{self.text[-3000:]}")
            time.sleep(0.2)

    def wait(self, timeout_s: float = START_S) -> int:
        """The exit status."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < deadline:
            self.look()
            time.sleep(0.2)
        if self.process.poll() is None:
            self.kill()
            raise AssertionError(f"it did not end within {timeout_s} s:\n{self.text[-3000:]}")
        return int(self.process.returncode)

    def stop(self) -> int:
        """SIGTERM, as an operator's; the exit status."""
        self.look()
        self.process.send_signal(signal.SIGTERM)
        return self.wait(STOP_S)

    def kill(self) -> None:
        """For clean-up after a failed test; stops what it knows of."""
        self.look()
        for pid in [self.process.pid, *self.left()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(STOP_S)


@contextlib.contextmanager
def running(demo: Demo) -> Iterator[Demo]:
    """Ends it, whatever the test did."""
    try:
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.stop()


class Inside:
    """What root sees of a running demonstration: its configuration, its database, its node."""

    def __init__(self, directory: Path, ready: Mapping[str, Any]) -> None:
        self.directory = directory
        self.ready = ready
        self.config = configparser.ConfigParser()
        self.config.read(directory / "airflow" / "airflow.cfg")
        self.login = json.loads(Path(ready["login_file"]).read_text())
        self.gateway_port = int((directory / "airflow" / "gateway.port").read_text())

    @property
    def report(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "report.json").read_text()))

    def node_path(self, inside: str) -> Path:
        """A path of the worker node, as the host sees it."""
        found = re.search(r"--target=(\d+)", (self.directory / "node" / "enter").read_text())
        assert found is not None
        return Path(f"/proc/{found[1]}/root{inside}")

    def launcher_records(self) -> list[dict[str, Any]]:
        """The launcher's own log: one record for each request that has ended."""
        text = self.node_path("/run/airpanda/log/glexec.jsonl").read_text()
        return [event for event in map(json.loads, text.splitlines()) if event.get("event") != "started"]

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def tables(self) -> dict[str, str]:
        """All rows of all tables as text."""
        names = [name for (name,) in self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        return {name: "\n".join(row for (row,) in self.query(f'SELECT t::text FROM "{name}" t')) for name in names}

    def _connect(self) -> psycopg2.extensions.connection:
        url = self.config.get("database", "sql_alchemy_conn")
        return psycopg2.connect(url.replace("+psycopg2", "", 1))

    def unseal(self, sealed: bytes | str) -> str:
        return Fernet(self.config.get("core", "fernet_key")).decrypt(sealed).decode()

    def client_token(self) -> str:
        """The token in Airflow's Connection."""
        ((sealed,),) = self.query("SELECT password FROM connection WHERE conn_id = 'panda_default'")
        return self.unseal(sealed)

    def secrets(self) -> Canaries:
        """All real secrets of this demonstration."""
        found = Canaries()
        for section, name in (("core", "fernet_key"), ("api", "secret_key"), ("api_auth", "jwt_secret")):
            found.remember(self.config.get(section, name), name)
        for file in ("airflow/passwords.json", "pg/passwords.json"):
            for name, value in json.loads((self.directory / file).read_text()).items():
                found.remember(value, f"password of {name}")
        for key in [self.directory / "airflow" / "signing.pem", *self.directory.glob("pki/*.key")]:
            found.remember(key.read_bytes(), key.name)
        for proxy in self.directory.glob("pki/*.proxy"):
            found.remember(proxy.read_bytes(), proxy.name)
        found.remember(self.client_token(), "client token")
        for (sealed,) in self.query("SELECT passphrase FROM panda_credential"):
            found.remember(self.unseal(bytes(sealed)), "passphrase in MyProxy")
        for pilot in self.node_path("/var/tmp/pilots").glob("*/pilot.json"):
            found.remember(json.loads(pilot.read_text())["token"], "pilot token")
        return found

    def api(self) -> httpx.Client:
        """Airflow's REST API, logged in with what the login file says."""
        url = self.ready["url"].replace("localhost", "127.0.0.1")
        login = {"username": "admin", "password": self.login["admin"]}
        token = httpx.post(f"{url}/auth/token", json=login, trust_env=False, timeout=90).json()["access_token"]
        return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=90)

    def run_dag(self, dag_id: str, conf: Mapping[str, Any], timeout_s: float = 300.0) -> dict[str, Any]:
        """Trigger it and wait for success; the XCom of its task ``job``."""
        with self.api() as client:
            runs = f"/api/v2/dags/{dag_id}/dagRuns"
            run_id = client.post(runs, json={"logical_date": None, "conf": conf}).json()["dag_run_id"]
            deadline = time.monotonic() + timeout_s
            while (state := client.get(f"{runs}/{run_id}").json()["state"]) not in ("success", "failed"):
                assert time.monotonic() < deadline, f"{dag_id} is {state} after {timeout_s} s"
                time.sleep(0.5)
            assert state == "success", client.get(f"{runs}/{run_id}/taskInstances").text
            entry = client.get(f"{runs}/{run_id}/taskInstances/job/xcomEntries/return_value")
            return dict(entry.json()["value"])

    def output(self, panda_id: int, lfn: str) -> bytes:
        """A job's output, from the dispatcher."""
        return self._ask(f"/v1/file/{panda_id}/{lfn}").content

    def audit(self, owner_dn: str) -> list[dict[str, Any]]:
        """Who used this owner's credentials, from the dispatcher."""
        return list(self._ask("/v1/creds/audit", owner_dn=owner_dn, limit="1000").json())

    def _ask(self, path: str, **parameters: str) -> httpx.Response:
        url = self.ready["url"].replace("localhost", "127.0.0.1")
        headers = {"Authorization": f"Bearer {self.client_token()}"}
        answer = httpx.get(f"{url}/panda{path}", headers=headers, params=parameters, trust_env=False, timeout=60)
        answer.raise_for_status()
        return answer


class ProcessWatch:
    """Everything that arguments and environments of all processes showed while it was on."""

    def __init__(self) -> None:
        self.texts: set[bytes] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        self.texts.add(Path("/proc", pid, name).read_bytes())
