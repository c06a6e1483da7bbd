"""Submission, wrapper, pilot, MyProxy, launcher: real ones, on a worker node with its own accounts."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.fake_dispatcher import TOKEN, FakeDispatcher, fake_dispatcher, make_job
from support.launcher import ALICE_UID, BOB_UID, PILOT_UID, Site, host_status, wait_for
from support.myproxy_server import ServerProcess
from support.node_processes import command_of, kill_pilots, processes_of
from support.pilot_chain import myproxy, site

import airpanda
from airpanda import messages as m
from airpanda.computing.elements import Handle, PilotBatch, PilotJobState, make_element
from airpanda.computing.local import LocalElement
from airpanda.computing.queues import PandaQueue
from airpanda.core.secret import Secret
from airpanda.myproxy.staging import stage
from airpanda.x509.credential import ProxyCredential
from airpanda_demo.worker_node import GRID_SECURITY, INSTALLED

__all__ = ["myproxy", "site"]
pytestmark = [pytest.mark.root, pytest.mark.integration]

PLUGINS = Path(airpanda.__file__).parent.parent
WRAPPER = PLUGINS.parent / "include/pilot/wrapper.sh"
PILOTS = "/home/pilot/pilots"


@dataclass
class Chain:
    """One dispatcher, one queue, and what a test does with them."""

    site: Site
    myproxy: ServerProcess
    fake: FakeDispatcher
    queue: PandaQueue

    @property
    def element(self) -> LocalElement:
        element = make_element(self.queue, WRAPPER)
        assert isinstance(element, LocalElement)
        return element

    def job(self, panda_id: int, who: str, **spec: Any) -> m.AcquiredJob:
        """A job whose owner's proxy is staged for the pilot's DN alone."""
        owner = ProxyCredential.from_files(*self.site.pki.user(who))
        staged = stage(
            self.myproxy.client(who), owner, retriever_dn=self.site.pki.dn("pilot"), lifetime=timedelta(hours=5)
        )
        job = make_job(panda_id, owner_dn=self.site.pki.dn(who), **spec)
        pointer = job.credential.model_copy(
            update={
                "server": staged.server,
                "username": staged.username,
                "cred_name": staged.cred_name,
                "passphrase": m.SecretStr(staged.passphrase.reveal()),
            }
        )
        return job.model_copy(update={"credential": pointer})

    def submit(self, tag: str, *pilots: int) -> dict[int, Handle]:
        return dict(self.element.submit(PilotBatch(tag, {p: Secret(TOKEN) for p in pilots or (1,)})).handles)

    def log(self, handle: Handle) -> str:
        return self.element.fetch(handle).decode()

    def ended(self, handle: Handle) -> PilotJobState:
        wait_for(lambda: self.element.status([handle])[handle].state.is_final, 60)
        return self.element.status([handle])[handle].state

    def left_on_the_node(self) -> list[str]:
        """Sandboxes, and processes of payload accounts."""
        inside = self.site.node.path(Path(PILOTS))
        left = [str(p) for p in inside.iterdir() if p.name.startswith(".") and p.is_dir()] if inside.exists() else []
        return left + [str(pid) for uid in (ALICE_UID, BOB_UID) for pid in processes_of(self.site, uid)]


@pytest.fixture
def chain(site: Site, myproxy: ServerProcess) -> Iterator[Chain]:
    proxy = site.put_proxy("pilot")
    wire: dict[str, Any] = {
        "queue": {"name": "NODE", "state": "online", "identity_policy": "REQUIRED"},
        "ce": {"kind": "local", "directory": PILOTS, "enter": [str(site.node.enter)], "account": "pilot"},
        "pilot": {
            "python": sys.executable,
            "code": str(PLUGINS),
            "dispatcher_url": "",
            "ca_dir": str(GRID_SECURITY / "certificates"),
            "proxy": str(proxy),
            "glexec": site.glexec,
            "myproxy": f"localhost:{myproxy.port}",
            "idle_limit_s": 1,
            "benchmark_s": 0,
        },
        "environment": {"PATH": "/usr/bin:/bin"},
    }
    with fake_dispatcher() as fake:
        wire["pilot"]["dispatcher_url"] = fake.url
        chain = Chain(site, myproxy, fake, PandaQueue.from_wire(wire))
        yield chain
        inside = site.node.path(Path(PILOTS))
        handles = [Handle(p.parent.name) for p in inside.glob("*/handle.json")] if inside.exists() else []
        if handles:
            chain.element.cancel(handles)
            for handle in handles:
                chain.ended(handle)
        assert fake.errors == [], "the pilot sent what the dispatcher does not accept"
        assert chain.left_on_the_node() == []


def test_a_pilot_whose_preflight_is_refused_takes_nothing(chain: Chain) -> None:
    chain.site.node.set_mapfile(chain.site.mapfile)  # the pilot's own DN is not mapped
    chain.fake.jobs = [make_job()]
    try:
        (handle,) = chain.submit("unmapped").values()
        assert chain.ended(handle) is PilotJobState.FAILED
    finally:
        chain.site.node.set_mapfile({**chain.site.mapfile, chain.site.pki.dn("pilot"): "other"})
    assert chain.element.status([handle])[handle].exit_code == 75
    assert len(chain.fake.jobs) == 1
    assert "203" in chain.fake.workers[-1].reason


def test_two_owners_run_as_two_accounts_and_neither_is_the_pilots(chain: Chain) -> None:
    script = "id -u > who.txt; grep -E '^(Uid|NoNewPrivs|CapEff)' /proc/self/status; cat in.txt >> who.txt"
    chain.fake.inputs["in.txt"] = b"input\n"
    spec: dict[str, Any] = {
        "argv": ["sh", "run.sh"],
        "scripts": {"run.sh": script},
        "inputs": [{"lfn": "in.txt", "source": "panda:1/in.txt"}],
        "outputs": [{"lfn": "who.txt"}],
    }
    chain.fake.jobs = [chain.job(1, "alice", **spec), chain.job(2, "bob", **spec)]
    (handle,) = chain.submit("owners").values()
    assert chain.ended(handle) is PilotJobState.DONE, chain.log(handle)
    finals = {r.job_id: r for r in chain.fake.reports if r.job_status == "finished"}
    assert {i: r.account_uid for i, r in finals.items()} == {1: ALICE_UID, 2: BOB_UID}, chain.log(handle)
    assert {r.account_name for r in finals.values()} == {"alice", "bob"}
    assert all(r.identity_switched and r.pilot_uid == PILOT_UID for r in finals.values())
    assert chain.fake.files["1/1/who.txt"] == f"{ALICE_UID}\ninput\n".encode()
    assert chain.fake.files["2/1/who.txt"] == f"{BOB_UID}\ninput\n".encode()
    assert b"CapEff:\t0000000000000000" in chain.fake.files["1/1/payload.log"]
    probe = chain.fake.workers[0].probe
    assert (probe["switch"]["kind"], probe["switch"]["account"]) == ("glexec", "other")
    assert probe["myproxy"]["reached"] is True


def test_the_account_is_what_the_host_sees(chain: Chain) -> None:
    chain.fake.jobs = [chain.job(3, "alice", argv=["sleep", "30.25"])]
    (handle,) = chain.submit("seen").values()
    chain.fake.wait_for("running", 60)
    (pid,) = [p for p in processes_of(chain.site, ALICE_UID) if b"30.25" in command_of(p)]
    assert host_status(pid)["Uid"].split() == [str(ALICE_UID)] * 4
    chain.fake.command = "tobekilled"
    chain.fake.wait_for("cancelled", 30)
    assert chain.ended(handle) is PilotJobState.DONE


def test_a_payload_finds_nothing_of_the_pilot(chain: Chain) -> None:
    mine, proxy = f"{PILOTS}/secret-1", chain.queue.pilot.proxy
    look = "\n".join(
        (
            f"for place in {PILOTS}/* {PILOTS} /home/pilot; do ls -d $place/* && echo LISTED; done",
            f"for own in {mine} {mine}/sweep.json {mine}/wrapper.sh {proxy}; do test -e $own && echo THERE $own; done",
            f"cat {proxy} && echo READ",
            "ls /proc/*/environ | wc -l; cat /proc/*/environ | tr '\\0' '\\n'",
            "kill -0 -1 && echo SIGNALLED; for d in /proc/[0-9]*; do cat $d/cmdline | tr '\\0' ' '; done",
            "echo ended",
        )
    )
    chain.fake.jobs = [chain.job(4, "alice", argv=["sh", "look.sh"], scripts={"look.sh": look})]
    (handle,) = chain.submit("secret").values()
    assert chain.site.node.path(Path(mine, "wrapper.sh")).exists()
    assert chain.ended(handle) is PilotJobState.DONE, chain.log(handle)
    text = chain.fake.files["4/1/payload.log"].decode()
    assert text.endswith("ended\n")
    for word in ("LISTED", "THERE", "READ", "SIGNALLED", TOKEN, "lease-", "PRIVATE KEY"):
        assert word not in text, word


def test_a_credential_that_was_destroyed_fails_the_job_and_not_the_node(chain: Chain) -> None:
    job = chain.job(5, "alice")
    chain.myproxy.client("alice").destroy(job.credential.username, cred_name=job.credential.cred_name)
    chain.fake.jobs = [job]
    (handle,) = chain.submit("destroyed").values()
    assert chain.ended(handle) is PilotJobState.DONE
    assert chain.fake.statuses == ["starting", "failed"]
    assert [(e.code, e.blame) for e in chain.fake.final.errors] == [(1163, "user")]
    assert chain.fake.final.credential_event == "refused"


def test_an_owner_without_an_account_sends_the_job_back_and_the_node_serves_others(chain: Chain) -> None:
    chain.fake.jobs = [chain.job(6, "carol"), chain.job(7, "alice")]
    (handle,) = chain.submit("unmapped-owner").values()
    assert chain.ended(handle) is PilotJobState.DONE, chain.log(handle)
    assert chain.fake.statuses == ["starting", "activated", "starting", "running", "finished"]
    (error,) = next(report for report in chain.fake.reports if report.job_status == "activated").errors
    assert (error.code, error.blame) == (1226, "site")
    assert "203" in error.diag


def test_a_launcher_that_breaks_under_a_pilot_hands_the_job_back_and_benches_the_node(chain: Chain) -> None:
    """After a good preflight. Nothing weaker takes its place: no payload runs, as whomever."""
    config = chain.site.node.path(INSTALLED.config)
    trace = chain.site.directory(mode=0o1777)
    chain.queue = replace(chain.queue, pilot=replace(chain.queue.pilot, idle_limit_s=60, bench_sleep_s=0))
    (handle,) = chain.submit("breaks").values()
    wait_for(lambda: chain.fake.offers, 60)
    try:
        config.chmod(0o666)
        chain.fake.jobs = [chain.job(10, "alice", argv=["touch", str(trace / "ran")]), chain.job(11, "bob")]
        assert chain.ended(handle) is PilotJobState.FAILED, chain.log(handle)
    finally:
        config.chmod(0o640)
    assert chain.fake.statuses == ["starting", "activated"]
    (error,) = chain.fake.final.errors
    assert (str(error.source), error.code, error.blame) == ("pilot", 1226, "site")
    for word in ("the payload has not run", "202", "writable by group or others"):
        assert word in error.diag
    assert chain.fake.final.identity_switched in (None, False)
    assert list(chain.site.node.path(trace).iterdir()) == []
    assert [job.panda_id for job in chain.fake.jobs] == [11], "it has not asked for another one"
    assert [worker.status for worker in chain.fake.workers] == ["started", "benched"]
    assert "the node's own check fails" in chain.fake.workers[-1].reason
    assert chain.element.status([handle])[handle].exit_code == 75


@pytest.mark.parametrize("code", [3, 126, 201, 203])
def test_a_payloads_code_is_never_taken_for_the_launchers(chain: Chain, code: int) -> None:
    chain.fake.jobs = [chain.job(7, "alice", argv=["sh", "-c", f"exit {code}"])]
    (handle,) = chain.submit(f"code{code}").values()
    assert chain.ended(handle) is PilotJobState.DONE
    assert chain.fake.statuses == ["starting", "running", "failed"]
    assert [(str(e.source), e.code) for e in chain.fake.final.errors] == [("exe", code)]


def test_cancelling_the_pilot_ends_payload_and_report(chain: Chain) -> None:
    chain.fake.jobs = [chain.job(8, "bob", argv=["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])]
    (handle,) = chain.submit("cancel").values()
    chain.fake.wait_for("running", 60)
    chain.element.cancel([handle])
    assert chain.ended(handle) is PilotJobState.CANCELLED
    assert [e.code for e in chain.fake.final.errors] == [1201]


def test_a_killed_pilot_leaves_no_payload(chain: Chain) -> None:
    chain.fake.jobs = [chain.job(9, "bob", argv=["sleep", "61"])]
    (handle,) = chain.submit("killed").values()
    chain.fake.wait_for("running", 60)
    kill_pilots(chain.site, PILOT_UID)
    assert chain.ended(handle) is PilotJobState.FAILED
    wait_for(lambda: not processes_of(chain.site, BOB_UID), 20)
    time.sleep(0.1)
