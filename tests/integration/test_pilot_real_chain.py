"""Everything real but Airflow: PostgreSQL, gateway over mutual TLS, MyProxy, submission, pilots, launcher, accounts."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest
from cryptography.fernet import Fernet
from support.dispatcher import job_database, make_settings, spec, template_database, ti
from support.launcher import ALICE_UID, BOB_UID, PILOT_UID, Site, make_site, wait_for
from support.myproxy_server import CONFIG, ServerProcess, start_debian
from support.node_processes import kill_pilots, processes_of
from support.postgres import Database, postgres

import airpanda
from airpanda.computing.elements import Handle, PilotBatch, PilotJobState, make_element
from airpanda.computing.queues import PandaQueue, load_queue
from airpanda.core.clock import to_wire, utcnow
from airpanda.core.secret import Secret
from airpanda.dispatcher.tokens import Issuer
from airpanda.myproxy.staging import stage
from airpanda.x509.credential import ProxyCredential
from airpanda_demo.worker_node import GRID_SECURITY

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration]

PLUGINS = Path(airpanda.__file__).parent.parent
WRAPPER = PLUGINS.parent / "include/pilot/wrapper.sh"
PILOTS = "/home/pilot/pilots"
LEASE_S = 4
QUEUE = """
[queue]
name = "DEMO"
[ce]
kind = "local"
enter = ["{enter}"]
account = "pilot"
directory = "{directory}"
[pilot]
python = "{python}"
code = "{code}"
dispatcher_url = "https://localhost:{port}"
ca_dir = "{ca_dir}"
proxy = "{proxy}"
glexec = "{glexec}"
idle_limit_s = 8
"""


@pytest.fixture(scope="module", name="site")
def _site() -> Iterator[Site]:
    for site in make_site():
        site.node.set_mapfile({**site.mapfile, site.pki.dn("pilot"): "other"})
        yield site


@pytest.fixture(scope="module", name="myproxy")
def _myproxy(site: Site) -> Iterator[ServerProcess]:
    with start_debian(site.pki, CONFIG.replace("cert_dir {certs}\n", "")) as server:
        yield server


@dataclass
class Chain:
    """A client of the gateway, with what a test does through it."""

    site: Site
    myproxy: ServerProcess
    http: httpx.Client
    queue: PandaQueue
    database: Database

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
        element = make_element(PandaQueue.from_wire(batch["queue"]), WRAPPER)
        tokens = {each["pilot_id"]: Secret(each["token"]) for each in batch["pilots"]}
        handles = element.submit(PilotBatch(batch["tag"], tokens)).handles
        record = {"state": "submitted", "ce": "local", "handles": {str(k): v for k, v in handles.items()}}
        self.call("POST", f"/v1/batch/{batch['batch_id']}/record", record)
        return list(handles.values())

    def wait(self, task_id: int, limit_s: float = 90) -> dict[str, int]:
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
        element = make_element(self.queue, WRAPPER)
        return "\n".join(element.fetch(handle).decode() for handle in handles)  # type: ignore[attr-defined]

    def pilots_end(self, handles: list[Handle]) -> set[PilotJobState]:
        element = make_element(self.queue, WRAPPER)
        wait_for(lambda: all(status.state.is_final for status in element.status(handles).values()), 60)
        return {status.state for status in element.status(handles).values()}


@pytest.fixture
def chain(site: Site, myproxy: ServerProcess, job_database: Database, tmp_path: Path) -> Iterator[Chain]:
    settings = make_settings(tmp_path)
    (tmp_path / "queues").mkdir()
    queue_file = tmp_path / "queues" / "DEMO.toml"
    values = {
        "enter": site.node.enter,
        "directory": PILOTS,
        "python": sys.executable,
        "code": PLUGINS,
        "ca_dir": GRID_SECURITY / "certificates",
        "proxy": site.put_proxy("pilot"),
        "glexec": site.glexec,
    }
    queue_file.write_text(QUEUE.format(port=1, **values))
    environment = os.environ | {
        "PYTHONPATH": str(PLUGINS),
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": job_database.url("postgresql+psycopg2"),
        "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
        "AIRFLOW__AIRPANDA__SIGNING_KEY": str(settings.signing_key),
        "AIRFLOW__AIRPANDA__FILE_STORE": str(settings.file_store),
        "AIRFLOW__AIRPANDA__INCLUDE_DIR": str(tmp_path),
        "AIRFLOW__AIRPANDA__LEASE": str(LEASE_S),
        "AIRFLOW__AIRPANDA__HEARTBEAT_INTERVAL": "1",
    }
    host, key = site.pki.host()
    argv = [sys.executable, "-m", "airpanda.dispatcher.gateway", "--port", "0", "--port-file", str(tmp_path / "port")]
    argv += ["--cert", str(host), "--key", str(key), "--ca-dir", str(site.pki.ca_dir)]
    with (tmp_path / "gateway.log").open("wb") as log:
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: (tmp_path / "port").exists() or process.poll() is not None, 60)
        assert process.poll() is None, (tmp_path / "gateway.log").read_text()
        queue_file.write_text(QUEUE.format(port=(tmp_path / "port").read_text().strip(), **values))
        token = Issuer(settings.signing_key).client_token("tests", ["*"], ["*"], timedelta(hours=1), utcnow())
        with httpx.Client(
            base_url=f"https://localhost:{(tmp_path / 'port').read_text().strip()}",
            headers={"Authorization": f"Bearer {token.reveal()}"},
            verify=ssl.create_default_context(capath=str(site.pki.ca_dir)),
            trust_env=False,
            timeout=30,
        ) as http:
            yield Chain(site, myproxy, http, load_queue(queue_file), job_database)
    finally:
        process.kill()
        process.wait(10)


def test_three_pilots_run_two_owners_jobs_each_exactly_once(chain: Chain) -> None:
    script = "id -u > out.txt"
    job = {"argv": ["sh", "-c", script], "outputs": [{"lfn": "out.txt", "access": "vo"}]}
    alice = chain.submit("alice", *[spec(f"a{i}", **job) for i in range(8)])
    bob = chain.submit("bob", *[spec(f"b{i}", **job) for i in range(4)])
    handles = chain.send_pilots(3)
    assert chain.wait(alice["task_id"]) == {"finished": 8}, chain.logs(handles)
    assert chain.wait(bob["task_id"]) == {"finished": 4}, chain.logs(handles)
    for task, uid in ((alice, ALICE_UID), (bob, BOB_UID)):
        for one in chain.jobs(task["task_id"]):
            (attempt,) = one["attempts"]
            assert (attempt["account_uid"], attempt["pilot_uid"]) == (uid, PILOT_UID)
            assert attempt["identity_switched"] is True
            assert chain.http.get(f"/v1/file/{one['panda_id']}/out.txt").text == f"{uid}\n"
    first = alice["first_panda_id"]
    reader = spec("reader", argv=["sh", "-c", "cat *.txt"])
    reader["inputs"] = [{"lfn": f"in{i}.txt", "source": f"panda:{first + i}/out.txt"} for i in range(3)]
    analysis = chain.submit("bob", reader)
    theirs = chain.submit(
        "alice", spec("private", argv=["true"], inputs=[{"lfn": "x", "source": f"panda:{first + 9}/no"}])
    )
    assert chain.wait(analysis["task_id"]) == {"finished": 1}, chain.logs(handles)
    log = chain.http.get(f"/v1/job/{analysis['first_panda_id']}/log").text
    assert log == f"{ALICE_UID}\n" * 3
    assert chain.wait(theirs["task_id"]) == {"failed": 1}
    assert len(chain.jobs(theirs["task_id"])[0]["attempts"]) == 3, "charged to its owner, three times at most"
    events = Counter(
        row["action"]
        for who in ("alice", "bob")
        for row in chain.call("GET", f"/v1/creds/audit?owner_dn={chain.site.pki.dn(who)}&limit=1000")
    )
    assert events["released"] == events["retrieved"] == 16
    assert chain.pilots_end(handles) == {PilotJobState.DONE}
    show_overhead(chain)


def show_overhead(chain: Chain) -> None:
    """Seconds of an attempt that are neither payload nor waiting, from the status log; printed, never judged."""
    rows = chain.sql("SELECT panda_id, new_status, at FROM panda_job_status_log ORDER BY log_id")
    times: dict[int, dict[str, Any]] = {}
    for panda_id, status, at in rows:
        times.setdefault(panda_id, {})[status] = at
    for name, a, b in (("sent to running", "sent", "running"), ("running to finished", "running", "finished")):
        seconds = sorted((t[b] - t[a]).total_seconds() for t in times.values() if a in t and b in t)
        print(f"{name}: median {seconds[len(seconds) // 2]:.3f} s, worst {seconds[-1]:.3f} s of {len(seconds)}")


def test_a_killed_pilots_job_is_done_by_another_one_uncharged(chain: Chain) -> None:
    task = chain.submit("alice", spec("long", argv=["sh", "-c", "sleep 4; echo done"], max_attempt=1))
    handles = chain.send_pilots(1)
    wait_for(lambda: chain.call("GET", f"/v1/task/{task['task_id']}/progress")["counts"].get("running"), 60)
    kill_pilots(chain.site, PILOT_UID)
    handles += chain.send_pilots(1)
    assert chain.wait(task["task_id"]) == {"finished": 1}, chain.logs(handles)
    (job,) = chain.jobs(task["task_id"])
    assert [attempt["status"] for attempt in job["attempts"]] == ["finished", "failed"]
    assert job["attempts"][1]["errors"][0]["code"] == 100
    wait_for(lambda: not processes_of(chain.site, ALICE_UID), 20)
    assert chain.pilots_end(handles) == {PilotJobState.FAILED, PilotJobState.DONE}


def test_killing_the_task_ends_the_payload(chain: Chain) -> None:
    task = chain.submit("bob", spec("long", argv=["sleep", "60"]), spec("waiting", argv=["sleep", "60"]))
    handles = chain.send_pilots(1)
    wait_for(lambda: chain.call("GET", f"/v1/task/{task['task_id']}/progress")["counts"].get("running"), 60)
    begin = time.monotonic()
    chain.call("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "a test"})
    assert chain.wait(task["task_id"]) == {"cancelled": 2}, chain.logs(handles)
    assert time.monotonic() - begin < 20
    assert processes_of(chain.site, BOB_UID) == []
    make_element(chain.queue, WRAPPER).cancel(handles)
    chain.pilots_end(handles)
