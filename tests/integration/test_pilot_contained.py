"""The chain of an ordinary machine: no launcher, policy OPTIONAL, payloads contained under the pilots' own account.

Run with Debian's own Python and ``cryptography``, as on a worker node; ``AIRPANDA_NODE_PYTHON`` names another one.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.fake_dispatcher import TOKEN, FakeDispatcher, fake_dispatcher, make_job
from support.launcher import wait_for
from support.myproxy_server import CONFIG, ServerProcess, start_debian
from support.need import NODE_PYTHON, need_nodes_python, need_program
from support.pki import Pki

import airpanda
from airpanda import messages as m
from airpanda.computing.elements import Handle, PilotBatch, PilotJobState
from airpanda.computing.local import LocalElement
from airpanda.computing.queues import PandaQueue
from airpanda.core.identity import IdentityPolicy
from airpanda.core.secret import Secret
from airpanda.myproxy.staging import stage
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

pytestmark = pytest.mark.integration

PLUGINS = Path(airpanda.__file__).parent.parent
WRAPPER = PLUGINS.parent / "include/pilot/wrapper.sh"
ACCOUNT = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@dataclass
class Machine:
    """A directory that the pilots' account may pass through, with a PKI, MyProxy and a queue."""

    root: Path
    pki: Pki
    myproxy: ServerProcess
    fake: FakeDispatcher
    queue: PandaQueue

    def element(self, policy: IdentityPolicy = IdentityPolicy.OPTIONAL) -> LocalElement:
        return LocalElement(replace(self.queue, identity_policy=policy), WRAPPER.read_text())

    def job(self, panda_id: int, **spec: Any) -> m.AcquiredJob:
        owner = ProxyCredential.from_files(*self.pki.user("alice"))
        retriever = self.pki.dn("pilot")
        staged = stage(self.myproxy.client("alice"), owner, retriever_dn=retriever, lifetime=timedelta(hours=5))
        job = make_job(panda_id, owner_dn=self.pki.dn("alice"), **spec)
        found = {"server": staged.server, "username": staged.username, "cred_name": staged.cred_name}
        found["passphrase"] = m.SecretStr(staged.passphrase.reveal())  # type: ignore[assignment]
        return job.model_copy(update={"credential": job.credential.model_copy(update=found)})

    def run(self, tag: str, policy: IdentityPolicy = IdentityPolicy.OPTIONAL) -> PilotJobState:
        """One pilot's whole life."""
        element = self.element(policy)
        (handle,) = element.submit(PilotBatch(tag, {1: Secret(TOKEN)})).handles.values()
        wait_for(lambda: element.status([handle])[handle].state.is_final, 60)
        return element.status([handle])[handle].state

    def log(self, tag: str) -> str:
        return self.element().fetch(Handle(f"{tag}-1")).decode()


@pytest.fixture(scope="module", name="machine")
def _machine() -> Iterator[Machine]:
    need_nodes_python()
    need_program("bwrap", "bubblewrap")
    root = Path(tempfile.mkdtemp(prefix="airpanda contained ", dir="/var/tmp"))
    try:
        root.chmod(0o711)
        pki = Pki(root / "pki")
        pki.root.chmod(0o755)
        # The checkout itself may lie below a directory that is closed to other accounts.
        code = root / "plugins"
        shutil.copytree(PLUGINS / "airpanda", code / "airpanda", ignore=shutil.ignore_patterns("__pycache__"))
        private = root / "node"
        private.mkdir(mode=0o700)
        eec = ProxyCredential.from_files(*pki.user("pilot"))
        create_proxy(eec, lifetime=timedelta(hours=5), now=datetime.now(UTC)).write(private / "pilot.proxy")
        (private / "secret").write_text("canary of the pilots' account")
        if os.geteuid() == 0:
            for path in (private, *private.iterdir()):
                shutil.chown(path, ACCOUNT)
        wire = {
            "queue": {"name": "LAPTOP"},
            "ce": {"kind": "local", "directory": str(root / "pilots"), "account": ACCOUNT},
            "pilot": {
                "python": NODE_PYTHON,
                "code": str(code),
                "dispatcher_url": "",
                "ca_dir": str(pki.ca_dir),
                "proxy": str(private / "pilot.proxy"),
                "idle_limit_s": 1,
                "benchmark_s": 0,
            },
        }
        config = CONFIG.replace("cert_dir {certs}\n", "")
        with fake_dispatcher() as fake, start_debian(pki, config) as myproxy:
            wire["pilot"]["dispatcher_url"] = fake.url
            yield Machine(root, pki, myproxy, fake, PandaQueue.from_wire(wire))
    finally:
        shutil.rmtree(root)


@pytest.fixture(autouse=True)
def _fresh(machine: Machine) -> Iterator[None]:
    for seen in (machine.fake.reports, machine.fake.workers, machine.fake.offers, machine.fake.jobs):
        seen.clear()  # type: ignore[attr-defined]
    machine.fake.files.clear()
    yield
    assert machine.fake.errors == []
    pilots = machine.root / "pilots"
    left = [path for path in pilots.iterdir() if path.name.startswith(".") and path.is_dir()]
    assert left == [], "sandboxes were left behind"


def test_required_without_a_launcher_takes_nothing(machine: Machine) -> None:
    machine.fake.jobs.append(make_job())
    assert machine.run("required", IdentityPolicy.REQUIRED) is PilotJobState.FAILED
    assert machine.fake.offers == []
    assert "no launcher is installed" in machine.fake.workers[-1].reason


def test_optional_runs_contained_and_says_that_nothing_was_switched(machine: Machine) -> None:
    script = 'cat in.txt > out.txt; ls -l "$X509_USER_PROXY" | cut -c1-10; id -u'
    machine.fake.inputs["in.txt"] = b"input\n"
    machine.fake.jobs.append(
        machine.job(
            21,
            argv=["sh", "-c", script],
            inputs=[{"lfn": "in.txt", "source": "panda:1/in.txt"}],
            outputs=[{"lfn": "out.txt"}],
        )
    )
    assert machine.run("optional") is PilotJobState.DONE, machine.log("optional")
    assert machine.fake.statuses == ["starting", "running", "finished"], machine.log("optional")
    assert machine.fake.files["21/1/out.txt"] == b"input\n"
    assert machine.fake.final.identity_switched is False
    assert machine.fake.final.account_uid == machine.fake.final.pilot_uid
    assert b"-rw-------" in machine.fake.files["21/1/payload.log"]
    assert machine.fake.workers[0].probe["switch"]["switches"] is False


def test_the_cpu_time_of_a_contained_payload_is_measured(machine: Machine) -> None:
    """Also that of what it forks, though bubblewrap's own process waits for none of it."""
    burn = "/usr/bin/python3 -I -c 'import time\nwhile time.process_time() < 0.5: pass'"
    machine.fake.jobs.append(machine.job(24, argv=["sh", "-c", f"{burn} & {burn}; wait"]))
    assert machine.run("cpu") is PilotJobState.DONE, machine.log("cpu")
    use = machine.fake.final.use
    assert use is not None
    assert 1.0 <= use.cpu_s < 3.0


def test_a_contained_payload_finds_nothing_of_its_pilot(machine: Machine) -> None:
    pilots = machine.root / "pilots"
    look = f"""
ls -a '{pilots}' '{pilots}/secret-1'
cat '{pilots}/secret-1/pilot.json' '{machine.queue.pilot.proxy}' '{machine.root}/node/secret'
cat '{pilots}'/*/job-*/payload.proxy
cat /proc/*/environ | tr '\\0' '\\n'
for d in /proc/[0-9]*; do cat $d/cmdline | tr '\\0' ' '; done
echo ended
"""
    machine.fake.jobs.append(machine.job(22, argv=["sh", "look.sh"], scripts={"look.sh": look}))
    assert machine.run("secret") is PilotJobState.DONE
    text = machine.fake.files["22/1/payload.log"].decode()
    assert text.endswith("ended\n")
    for word in ("canary", "PRIVATE KEY", TOKEN, "lease-", "airpanda.pilot.__main__"):
        assert word not in text, text


def test_a_payload_that_ignores_term_and_leaves_daemons_is_ended(machine: Machine) -> None:
    script = "setsid sh -c \"trap '' TERM; sleep 77.5\" & trap '' TERM; sleep 77.5; sleep 77.5"
    machine.fake.jobs.append(machine.job(23, argv=["sh", "-c", script], walltime_s=1))
    assert machine.run("stubborn") is PilotJobState.DONE
    assert [error.code for error in machine.fake.final.errors] == [1213]
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 77.5" not in shown
