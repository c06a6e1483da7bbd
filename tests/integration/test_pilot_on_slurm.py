"""Pilots on real Slurm over SSH: wrapper, pilot, MyProxy and the launcher's switch of accounts, all real."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.batch_rig import Rig, make_rig, until
from support.fake_dispatcher import TOKEN, FakeDispatcher, fake_dispatcher, make_job
from support.launcher import ALICE_UID, BOB_UID, PILOT_UID
from support.myproxy_server import CONFIG, ServerProcess, start_debian

import airpanda
from airpanda import messages as m
from airpanda.computing.batch import BatchElement
from airpanda.computing.elements import PilotBatch, PilotJobState, make_element
from airpanda.computing.queues import PandaQueue
from airpanda.core.secret import Secret
from airpanda.myproxy.staging import stage
from airpanda.x509.credential import ProxyCredential
from airpanda_demo.worker_node import GRID_SECURITY

pytestmark = [pytest.mark.root, pytest.mark.integration]

PLUGINS = Path(airpanda.__file__).parent.parent
WRAPPER = PLUGINS.parent / "include/pilot/wrapper.sh"
PILOTS = "/home/pilot/pilots"


@pytest.fixture(scope="module", name="rig")
def module_rig() -> Iterator[Rig]:
    for rig in make_rig():
        rig.site.node.set_mapfile({**rig.site.mapfile, rig.site.pki.dn("pilot"): "other"})
        yield rig
        rig.tidy()


@pytest.fixture(scope="module", name="myproxy")
def module_myproxy(rig: Rig) -> Iterator[ServerProcess]:
    with start_debian(rig.site.pki, CONFIG.replace("cert_dir {certs}\n", "")) as server:  # its path has spaces
        yield server


@pytest.fixture(name="fake")
def running_dispatcher() -> Iterator[FakeDispatcher]:
    with fake_dispatcher() as fake:
        yield fake


@pytest.fixture
def element(rig: Rig, myproxy: ServerProcess, fake: FakeDispatcher) -> Iterator[BatchElement]:
    wire: dict[str, Any] = rig.queue("ssh").to_wire()
    wire["queue"]["identity_policy"] = "REQUIRED"
    wire["ce"] = {**wire["ce"], "directory": PILOTS}
    wire["pilot"] = {
        "python": sys.executable,
        "code": str(PLUGINS),
        "dispatcher_url": fake.url,
        "ca_dir": str(GRID_SECURITY / "certificates"),
        "proxy": str(rig.site.put_proxy("pilot")),
        "glexec": rig.site.glexec,
        "myproxy": f"localhost:{myproxy.port}",
        "idle_limit_s": 1,
        "benchmark_s": 0,
    }
    wire["environment"] = {"PATH": "/usr/bin:/bin"}
    made = make_element(PandaQueue.from_wire(wire), WRAPPER, login=rig.sshd.login)
    assert isinstance(made, BatchElement)
    yield made
    made.close()


def job(rig: Rig, myproxy: ServerProcess, panda_id: int, who: str, **spec: Any) -> m.AcquiredJob:
    """A job whose owner's proxy is staged for the pilot's DN alone."""
    owner = ProxyCredential.from_files(*rig.site.pki.user(who))
    pilot = rig.site.pki.dn("pilot")
    staged = stage(myproxy.client(who), owner, retriever_dn=pilot, lifetime=timedelta(hours=5))
    made = make_job(panda_id, owner_dn=rig.site.pki.dn(who), **spec)
    pointer = made.credential.model_copy(
        update={
            "server": staged.server,
            "username": staged.username,
            "cred_name": staged.cred_name,
            "passphrase": m.SecretStr(staged.passphrase.reveal()),
        }
    )
    return made.model_copy(update={"credential": pointer})


def test_two_pilots_run_two_owners_jobs_as_two_accounts(
    rig: Rig, myproxy: ServerProcess, fake: FakeDispatcher, element: BatchElement
) -> None:
    spec: dict[str, Any] = {"argv": ["sh", "-c", "id -u > who.txt"], "outputs": [{"lfn": "who.txt"}]}
    fake.jobs = [job(rig, myproxy, 1, "alice", **spec), job(rig, myproxy, 2, "bob", **spec)]
    tokens = {pilot: Secret(TOKEN) for pilot in (1, 2)}
    handles = list(element.submit(PilotBatch("chain", tokens)).handles.values())
    until(lambda: all(status.state.is_final for status in element.status(handles).values()), 90)
    logs = "".join(element.fetch(handle).decode() for handle in handles)
    assert {s.state for s in element.status(handles).values()} == {PilotJobState.DONE}, logs
    finals = {r.job_id: r for r in fake.reports if r.job_status == "finished"}
    assert {i: r.account_uid for i, r in finals.items()} == {1: ALICE_UID, 2: BOB_UID}, logs
    assert all(r.identity_switched and r.pilot_uid == PILOT_UID for r in finals.values())
    assert fake.files["1/1/who.txt"] == f"{ALICE_UID}\n".encode()
    assert fake.files["2/1/who.txt"] == f"{BOB_UID}\n".encode()
    assert TOKEN not in logs
    assert fake.errors == []
    left = [path.name for path in rig.site.node.path(Path(PILOTS, "chain")).iterdir() if path.name.startswith(".")]
    assert left == []


def test_a_cancelled_pilot_ends_its_payload_and_cleans_up(
    rig: Rig, myproxy: ServerProcess, fake: FakeDispatcher, element: BatchElement
) -> None:
    fake.jobs = [job(rig, myproxy, 3, "alice", argv=["sleep", "60.5"])]
    (handle,) = element.submit(PilotBatch("ended", {3: Secret(TOKEN)})).handles.values()
    fake.wait_for("running", 60)
    assert rig.site.processes(ALICE_UID)
    element.cancel([handle])
    until(lambda: element.status([handle])[handle].state.is_final, 60)
    assert element.status([handle])[handle].state in (PilotJobState.CANCELLED, PilotJobState.DONE)
    until(lambda: rig.site.processes(ALICE_UID) == [], 30)
    assert fake.final.job_status in ("failed", "cancelled")
