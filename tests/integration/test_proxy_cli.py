"""``airpanda proxy`` and ``airpanda ban`` as people run them: real gateway, Debian's myproxy-server, real processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.canary import Canaries
from support.dispatcher import job_database, spec, template_database, ti
from support.gateway import ROOT, RunningGateway, good, start_gateway
from support.myproxy_server import ServerProcess, start_debian
from support.pki import Pki
from support.postgres import Database, postgres

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.secret import Secret
from airpanda.x509 import pem
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.files import write_private
from airpanda.x509.proxy import create_proxy

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = pytest.mark.integration
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def myproxy(pki: Pki) -> Iterator[ServerProcess]:
    with start_debian(pki) as running:
        yield running


@pytest.fixture
def gateway(job_database: Database, pki: Pki, tmp_path: Path) -> Iterator[RunningGateway]:
    with start_gateway(job_database, pki, tmp_path) as running:
        yield running


@pytest.fixture
def run(gateway: RunningGateway, pki: Pki) -> Run:
    """The command as alice, unless the options name another certificate."""
    cert, key = pki.user("alice")

    def run(*arguments: str, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        room, command, *rest = arguments
        argv = [sys.executable, "-m", "airpanda", room, command, *rest]
        if room == "proxy":
            argv += [] if "--proxy" in rest or "--cert" in rest else ["--cert", str(cert), "--key", str(key)]
            argv += ["--ca-dir", str(pki.ca_dir)]
        environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "plugins"), "AIRPANDA_DISPATCHER": gateway.url}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False, **options)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def staging(myproxy: ServerProcess, *more: str) -> list[str]:
    address = f"localhost:{myproxy.port}"
    return ["--myproxy", address, "--retriever-dn", myproxy.pki.dn("pilot"), "--owner", "alice", *more]


def stored(myproxy: ServerProcess) -> set[str | None]:
    return {info.cred_name for info in myproxy.client("alice").info(myproxy.pki.dn("alice"))}


def submit(gateway: RunningGateway, credential_id: int, client: str = "airflow", key: str = "k") -> int:
    body = {"task_key": key, "task_name": "t", "owner": "alice", "queue": "DEMO", "ti": ti(), "jobs": [spec()]}
    with gateway.client(client) as http:
        return http.post("/v1/job/submit", json=body | {"credential_id": credential_id}).status_code


def acquire(gateway: RunningGateway) -> list[dict[str, Any]]:
    offer = {"site_name": "DEMO", "node": "wn1", "memory": 4000, "disk_space": 9000, "remaining_time": 7200}
    with gateway.as_pilot() as http:
        jobs: list[dict[str, Any]] = good(http.post("/v1/pilot/acquire_jobs", json=offer))["jobs"]
        return jobs


def test_from_staging_to_destruction(gateway: RunningGateway, myproxy: ServerProcess, run: Run) -> None:
    before = stored(myproxy)
    out = run("proxy", "stage", *staging(myproxy), "--hours", "9").stdout
    assert "staged as credential 1" in out
    assert "no client may use it yet" in out
    assert submit(gateway, 1) == 409

    run("proxy", "consent", "airflow", "--queues", "DEMO", "--credential", "1", "--days", "2")
    assert submit(gateway, 1) == 200
    (job,) = acquire(gateway)
    pointer = job["credential"]
    secret: Secret[str] = Secret(pointer["passphrase"])
    got = myproxy.client("pilot").get(
        pointer["username"], secret, cred_name=pointer["cred_name"], lifetime=timedelta(hours=1)
    )
    assert got.identity == myproxy.pki.dn("alice")

    shown = run("proxy", "info", "--uses", "10", "--myproxy", f"localhost:{myproxy.port}").stdout
    assert "consent: credential 1 to airflow on DEMO until" in shown
    assert re.search(rf"released by pilot:\d+ job {job['panda_id']}\.1 on wn1", shown)
    assert f"in MyProxy: {pointer['cred_name']}" in shown
    assert pointer["passphrase"] not in shown

    assert submit(gateway, 1, key="2") == 200
    assert "1 consents taken back" in run("proxy", "revoke", "--client", "airflow").stdout
    assert acquire(gateway) == []
    assert submit(gateway, 1, key="3") == 409

    assert "destroyed" in run("proxy", "destroy", "1").stdout
    assert "already" in run("proxy", "destroy", "1").stdout
    assert stored(myproxy) == before
    assert "credential 1 at" not in run("proxy", "info").stdout


def test_consent_while_staging_and_revocation_of_the_credential(
    gateway: RunningGateway, myproxy: ServerProcess, run: Run
) -> None:
    run("proxy", "stage", *staging(myproxy, "--consent", "airflow", "--queues", "DEMO", "--scope", "user"))
    assert submit(gateway, 1) == 200
    run("proxy", "revoke", "--credential", "1")
    assert acquire(gateway) == []
    run("proxy", "revoke", status=1)
    run("proxy", "revoke", "--consents")
    run("proxy", "destroy", "1")


def test_a_protected_key_opens_by_descriptor_and_a_dry_run_sends_nothing(
    gateway: RunningGateway, myproxy: ServerProcess, run: Run, pki: Pki, tmp_path: Path, canaries: Canaries
) -> None:
    passphrase = canaries.plant("key passphrase")
    cert, key = pki.user("alice")
    own = ProxyCredential.from_files(cert, key)
    write_private(tmp_path / "key", pem.encrypted_key_pem(own.private_key, Secret(passphrase)))
    before = stored(myproxy)

    def with_passphrase(text: str, *more: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        reader, writer = os.pipe()
        os.write(writer, f"{text}\n".encode())
        os.close(writer)
        try:
            options = ["--cert", str(cert), "--key", str(tmp_path / "key"), "--passphrase-fd", str(reader)]
            return run("proxy", "stage", *staging(myproxy), *options, *more, pass_fds=[reader], status=status)
        finally:
            os.close(reader)

    assert "nothing was sent" in with_passphrase(passphrase, "--dry-run").stdout
    assert stored(myproxy) == before
    assert "wrong passphrase" in with_passphrase("not this one", status=1).stderr
    assert "staged as credential 1" in with_passphrase(passphrase).stdout


def test_what_cannot_be_registered_does_not_stay_in_myproxy(
    gateway: RunningGateway, myproxy: ServerProcess, run: Run
) -> None:
    before = stored(myproxy)
    refused = run("proxy", "stage", *staging(myproxy)[:-1], "no name", status=1)
    assert "owner" in refused.stderr
    down = run("proxy", "stage", *staging(myproxy), "--dispatcher", "https://localhost:9", status=1)
    assert "cannot be reached" in down.stderr
    assert stored(myproxy) == before


def test_a_revoked_or_expired_certificate_is_told_before_anything_is_sent(
    gateway: RunningGateway, myproxy: ServerProcess, run: Run, pki: Pki
) -> None:
    cert, key = pki.expired_user("late")
    late = run("proxy", "stage", *staging(myproxy), "--cert", str(cert), "--key", str(key), status=1)
    assert "expired" in late.stderr


def test_forgers_are_refused(gateway: RunningGateway, pki: Pki, tmp_path: Path) -> None:
    """Registration proves possession: TLS with the owner's key, by nobody else and nothing that was delegated."""
    alice = ProxyCredential.from_files(*pki.user("alice"))
    first = create_proxy(alice, lifetime=timedelta(hours=2), now=utcnow())
    forged = {
        "nobody": None,
        "bob": ProxyCredential.from_files(*pki.user("bob")),
        "delegated, as a payload has it": create_proxy(first, lifetime=timedelta(hours=1), now=utcnow()),
        "limited": create_proxy(alice, lifetime=timedelta(hours=1), now=utcnow(), limited=True),
    }
    wanted = {
        "owner": "alice",
        "owner_dn": pki.dn("alice"),
        "server": "localhost:7512",
        "username": "u",
        "cred_name": "0" * 32,
        "passphrase": "canary",
        "retriever_dn": pki.dn("pilot"),
        "expires_at": to_wire(utcnow() + timedelta(hours=9)),
    }
    grant = {"client": "evil", "queues": ["*"], "until": to_wire(utcnow() + timedelta(hours=9)), "credential_id": None}
    for who, credential in forged.items():
        path = None
        if credential is not None:
            path = tmp_path / f"{who[:4]}.pem"
            credential.write(path)
        # A client token for everybody does not stand in for the certificate either.
        with gateway.http(path, token=gateway.client_token()) as http:
            answer = http.post("/v1/owner/creds", json=wanted)
            assert answer.status_code == (403 if who == "bob" else 401), (who, answer.text)
            if who != "bob":
                assert http.post("/v1/owner/consents", json=grant).status_code == 401
    bob = tmp_path / "bob.pem"
    direct = tmp_path / "first.pem"
    first.write(direct)
    with gateway.http(direct) as http:
        number = good(http.post("/v1/owner/creds", json=wanted))["credential_id"]
    with gateway.http(bob) as http:
        assert http.post(f"/v1/owner/creds/{number}/revoke").status_code == 404
        assert http.post("/v1/owner/consents", json=grant | {"credential_id": number}).status_code == 400
        assert good(http.get("/v1/owner/creds")) == []
        assert good(http.get("/v1/owner/audit")) == []


def test_ban_at_the_terminal(gateway: RunningGateway, run: Run, pki: Pki, tmp_path: Path) -> None:
    token = tmp_path / "token"
    write_private(token, gateway.client_token("operators").encode())
    common = ["--token-file", str(token), "--ca-file", str(pki.ca.cert)]
    run("ban", "add", "--fqan", "/vo/group", "--reason", "a test", *common)
    assert "fqan /vo/group: a test (by client:operators" in run("ban", "list", *common).stdout
    assert "not a VOMS attribute" in run("ban", "add", "--fqan", "x y", "--reason", "r", *common, status=1).stderr
    run("ban", "lift", "--fqan", "/vo/group", *common)
    assert run("ban", "list", *common).stdout == ""
    run("ban", "lift", "--fqan", "/vo/group", *common, status=1)
