"""What a thief gets with one of the things that open a credential: nothing. Real gateway, real myproxy-server.

Opening one takes three: the pilots' key, the passphrase (a Fernet token in the database, opened by a key outside it),
and a lease. Each test steals one, in full, and tries what it can.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest
from support.dispatcher import job_database, spec, template_database, ti
from support.gateway import RunningGateway, good, start_gateway
from support.myproxy_server import ServerProcess, start_debian
from support.pki import Pki
from support.postgres import Database, postgres

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.errors import CredentialError
from airpanda.core.secret import Secret
from airpanda.db.models import metadata
from airpanda.myproxy.staging import StagedCredential, stage
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = pytest.mark.integration
HOUR = timedelta(hours=1)
OFFER = {"site_name": "DEMO", "memory": 4000, "disk_space": 9000, "remaining_time": 7200}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def myproxy(pki: Pki) -> Iterator[ServerProcess]:
    with start_debian(pki) as running:
        yield running


@dataclass
class Loot:
    """A site at work: two owners' credentials staged, a job of each submitted."""

    gateway: RunningGateway
    myproxy: ServerProcess
    pilot_pem: Path
    staged: dict[str, StagedCredential] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    credentials: dict[str, int] = field(default_factory=dict)

    def bring(self, who: str) -> None:
        """Stage, register with consent, submit."""
        pki = self.gateway.pki
        own = ProxyCredential.from_files(*pki.user(who))
        staged = stage(self.myproxy.client(who), own, retriever_dn=pki.dn("pilot"), lifetime=6 * HOUR)
        registration = {
            "owner": who,
            "owner_dn": pki.dn(who),
            "server": staged.server,
            "username": staged.username,
            "cred_name": staged.cred_name,
            "passphrase": staged.passphrase.reveal(),
            "retriever_dn": pki.dn("pilot"),
            "expires_at": to_wire(staged.expires_at),
            "consent": {"queues": ["DEMO"]},
        }
        submission = {"task_key": who, "task_name": "t", "owner": who, "queue": "DEMO", "ti": ti(), "jobs": [spec()]}
        with self.gateway.client() as http:
            number = good(http.post("/v1/creds/register", json=registration))["credential_id"]
            task = good(http.post("/v1/job/submit", json=submission | {"credential_id": number}))
        self.staged[who], self.credentials[who], self.jobs[who] = staged, number, task["first_panda_id"]

    def pilot(self, node: str = "wn1") -> Worker:
        ticket = self.gateway.pilot()
        return Worker(self, ticket["pilot_id"], ticket["token"], node)

    def tries_to_get(self, who: str | None, username: str, passphrase: str, cred_name: str) -> None:
        """A retrieval, which must fail."""
        client = self.myproxy.client(who)
        with pytest.raises(CredentialError):
            client.get(username, Secret(passphrase), cred_name=cred_name, lifetime=HOUR)


@dataclass(frozen=True)
class Worker:
    """A pilot as it works: its own proxy in TLS, its own token."""

    loot: Loot
    pilot_id: int
    token: str = field(repr=False)
    node: str

    def post(self, verb: str, body: dict[str, Any], *, proxy: bool = True) -> httpx.Response:
        with self.loot.gateway.http(self.loot.pilot_pem if proxy else None, self.token) as http:
            return http.post(f"/v1/pilot/{verb}", json=body)

    def acquire(self) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = good(self.post("acquire_jobs", OFFER | {"node": self.node}))["jobs"]
        return jobs

    def retrieve(self, job: dict[str, Any]) -> ProxyCredential:
        pointer = job["credential"]
        secret: Secret[str] = Secret(pointer["passphrase"])
        client = self.loot.myproxy.client("pilot")
        return client.get(pointer["username"], secret, cred_name=pointer["cred_name"], lifetime=HOUR)

    def report(self, job: dict[str, Any], status: str, **changes: Any) -> httpx.Response:
        body = {"job_id": job["panda_id"], "attempt_nr": job["attempt_nr"], "token": job["token"], "node": self.node}
        return self.post("update_job", body | {"job_status": status} | changes)


@pytest.fixture
def loot(job_database: Database, pki: Pki, myproxy: ServerProcess, tmp_path: Path) -> Iterator[Loot]:
    pilot = ProxyCredential.from_files(*pki.user("pilot"))
    create_proxy(pilot, lifetime=12 * HOUR, now=utcnow()).write(tmp_path / "pilot.pem")
    with start_gateway(job_database, pki, tmp_path) as gateway:
        loot = Loot(gateway, myproxy, tmp_path / "pilot.pem")
        for who in ("alice", "bob"):
            loot.bring(who)
        yield loot


def test_the_pilots_certificate_alone_gets_nothing(loot: Loot) -> None:
    pki = loot.gateway.pki
    with loot.gateway.http(loot.pilot_pem) as http:
        assert http.post("/v1/pilot/acquire_jobs", json=OFFER | {"node": "x"}).status_code == 401
        assert good(http.get("/v1/owner/creds")) == [], "it is somebody, but not the owner"
        assert http.post(f"/v1/owner/creds/{loot.credentials['alice']}/revoke").status_code == 404
        assert http.get(f"/v1/creds/{loot.credentials['alice']}").status_code == 401
    # Even with everything but the passphrase: user name and credential name.
    staged = loot.staged["alice"]
    for passphrase in ("", "PASSPHRASE", secrets.token_urlsafe(32), staged.passphrase.reveal()[:-1]):
        loot.tries_to_get("pilot", staged.username, passphrase, staged.cred_name)
    assert loot.myproxy.client("pilot").info(pki.dn("alice")) == ()
    with pytest.raises(CredentialError):
        loot.myproxy.client("pilot").retrieve(staged.username, staged.passphrase, cred_name=staged.cred_name)
    with pytest.raises(CredentialError):
        loot.myproxy.client("pilot").destroy(staged.username, cred_name=staged.cred_name)


def dump(database: Database) -> str:
    """Every row of every table of ours, as a thief of the database would read it."""
    text = []
    with psycopg2.connect(database.url()) as connection, connection.cursor() as cursor:
        for table in metadata.tables:
            cursor.execute(f"SELECT * FROM {table}")
            for row in cursor.fetchall():
                text.append(repr([bytes(cell) if isinstance(cell, memoryview) else cell for cell in row]))
    return "\n".join(text)


def test_the_database_alone_gets_nothing(loot: Loot) -> None:
    worker = loot.pilot()
    (job, *_) = worker.acquire()
    everything = dump(loot.gateway.database)
    for staged in loot.staged.values():
        assert staged.cred_name in everything, "the dump does hold the pointers"
        assert staged.passphrase.reveal() not in everything
    assert job["token"] not in everything
    assert worker.token not in everything
    assert "PRIVATE KEY" not in everything
    assert "CERTIFICATE" not in everything
    with psycopg2.connect(loot.gateway.database.url()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT username, cred_name, passphrase, sealed_by FROM panda_credential")
        rows = cursor.fetchall()
    assert len(rows) == 2
    for username, cred_name, sealed, sealed_by in rows:
        guesses = (bytes(sealed).decode(), sealed_by, cred_name, "")
        for who in (None, "carol"):  # nobody, and another member of the VO
            for guess in guesses:
                loot.tries_to_get(who, username, guess, cred_name)
        # Together with the pilots' certificate it is still not enough: the Fernet key is elsewhere.
        for guess in guesses:
            loot.tries_to_get("pilot", username, guess, cred_name)
    # Digests of leases are no leases.
    with psycopg2.connect(loot.gateway.database.url()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT lease_digest FROM panda_job WHERE panda_id = %s", [job["panda_id"]])
        digest = bytes(cursor.fetchone()[0])
    assert worker.report(job | {"token": digest.hex()}, "starting").status_code == 409


def test_the_lease_of_another_job_gets_nothing(loot: Loot) -> None:
    worker, thief = loot.pilot("wn1"), loot.pilot("wn666")
    jobs = {job["panda_id"]: job for job in worker.acquire()}
    (mine,) = jobs.values()
    assert mine["panda_id"] == loot.jobs["alice"]
    (theirs,) = thief.acquire()
    assert theirs["panda_id"] == loot.jobs["bob"], "each job once"
    assert thief.acquire() == [], "a lease is released once; asking again gives nothing"
    # The stolen lease (PandaID, attempt, token) in the hands of another pilot, and on another job.
    for forged in (mine, theirs | {"token": mine["token"]}, mine | {"token": theirs["token"]}):
        answer = thief.report(forged, "running", credential_event="retrieved")
        assert (answer.status_code, "credential" in answer.json()) == (409, False), forged
        with loot.gateway.http(loot.pilot_pem, thief.token) as http:
            headers = {"X-Airpanda-Lease": forged["token"]}
            path = f"/v1/pilot/input/{loot.jobs['alice']}/1/x"
            assert http.get(path, headers=headers).status_code in (404, 409)
    # The lease token is no passphrase, and the passphrase of one job opens no other.
    alice = loot.staged["alice"]
    for passphrase in (mine["token"], theirs["token"], theirs["credential"]["passphrase"]):
        loot.tries_to_get("pilot", alice.username, passphrase, alice.cred_name)
    # A pilot that is not the retriever gets no job, whatever token it has.
    stranger = ProxyCredential.from_files(*loot.gateway.pki.user("pilot2"))
    stranger.write(loot.pilot_pem.with_name("stranger.pem"))
    loot.bring("carol")
    with loot.gateway.http(loot.pilot_pem.with_name("stranger.pem"), thief.token) as http:
        assert good(http.post("/v1/pilot/acquire_jobs", json=OFFER | {"node": "x"}))["jobs"] == []
    actions = [row["action"] for row in uses(loot, "alice")]
    assert actions == ["staged", "consented", "released"], "nothing of the thief's stands as a use"


def test_the_payloads_proxy_cannot_speak_for_its_owner(loot: Loot) -> None:
    (job,) = loot.pilot().acquire()
    loot.pilot().retrieve(job).write(loot.pilot_pem.with_name("payload.pem"))
    grant = {"client": "evil", "queues": ["*"], "until": to_wire(utcnow() + HOUR)}
    with loot.gateway.http(loot.pilot_pem.with_name("payload.pem")) as http:
        answer = http.post("/v1/owner/consents", json=grant)
        assert answer.status_code == 401
        assert "delegated" in answer.json()["detail"]


def uses(loot: Loot, who: str) -> list[dict[str, Any]]:
    """The audit query, oldest first."""
    with loot.gateway.client() as http:
        rows = good(http.get("/v1/creds/audit", params={"owner_dn": loot.gateway.pki.dn(who), "limit": 1000}))
    return list(reversed(rows))


def test_who_used_alices_proxy_where_and_when(loot: Loot) -> None:
    """The audit query returns exactly what was done, each with its lease, pilot, node and time."""
    begin = utcnow() - timedelta(seconds=2)
    first, other, second = loot.pilot("wn1.example.org"), loot.pilot("wn2"), loot.pilot("wn3.example.org")
    (job,) = first.acquire()
    (bobs,) = other.acquire()
    assert (job["panda_id"], bobs["panda_id"]) == (loot.jobs["alice"], loot.jobs["bob"])
    assert first.retrieve(job).identity == loot.gateway.pki.dn("alice")
    good(first.report(job, "starting", credential_event="retrieved"))
    good(other.report(bobs, "starting", credential_event="retrieved"))
    good(first.report(job, "activated", errors=[site_error()]))  # handed back: another node does it
    (again,) = second.acquire()
    assert second.retrieve(again).identity == loot.gateway.pki.dn("alice")
    good(second.report(again, "starting", credential_event="retrieved"))
    good(second.report(again, "running", credential_event="renewed"))
    good(second.report(again, "finished", trans_exit_code=0))

    rows = uses(loot, "alice")
    assert [row["action"] for row in rows[:2]] == ["staged", "consented"]
    assert [
        (row["action"], row["panda_id"], row["attempt_nr"], row["pilot_id"], row["node"], row["actor"])
        for row in rows[2:]
    ] == [
        (action, job["panda_id"], attempt, pilot.pilot_id, pilot.node, f"pilot:{pilot.pilot_id}")
        for action, attempt, pilot in (
            ("released", 1, first),
            ("retrieved", 1, first),
            ("released", 2, second),
            ("retrieved", 2, second),
            ("renewed", 2, second),
        )
    ]
    times = [datetime.fromisoformat(row["at"]) for row in rows]
    assert times == sorted(times)
    assert begin - HOUR < times[0]
    assert begin < times[2]
    assert times[-1] < utcnow() + timedelta(seconds=2)


def site_error() -> dict[str, Any]:
    return {"source": "pilot", "code": 1226, "diag": "the switch failed", "blame": "site"}
