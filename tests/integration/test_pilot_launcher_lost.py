"""A launcher is killed under a running payload: the store says so, blames no owner, and the job is done after all."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.dispatcher import job_database, spec, template_database
from support.launcher import ALICE_UID, Site, allow_sudo, host_status, make_site, program_of, wait_for
from support.myproxy_server import CONFIG, start_debian
from support.node_processes import command_of, processes_of
from support.pilot_chain import Chain, running_chain
from support.postgres import Database, postgres

from airpanda.computing.elements import PilotJobState
from airpanda_demo.worker_node import INSTALLED

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration]

FIRST_ONLY = 'if [ "$PANDA_ATTEMPT_NR" = 1 ]; then exec sleep 611; fi; id -u > out.txt'
LOST = {
    "front": {
        "socket": "the caller's program was killed",
        "sudo": "sudo, or the process that had started the launcher, was killed",
    },
    "launcher": "the launcher was killed",
    "init": "the first process of the payload's namespace was killed",
}


@pytest.fixture(scope="module", name="site")
def _site() -> Iterator[Site]:
    for site in make_site():
        allow_sudo(site)
        site.node.set_mapfile({**site.mapfile, site.pki.dn("pilot"): "other"})
        yield site


@pytest.fixture(params=["socket", "sudo"])
def chain(
    request: pytest.FixtureRequest, site: Site, job_database: Database, tmp_path: Path
) -> Iterator[tuple[str, Chain]]:
    glexec = {"socket": INSTALLED.glexec, "sudo": INSTALLED.glexec_sudo}[request.param]
    with (
        start_debian(site.pki, CONFIG.replace("cert_dir {certs}\n", "")) as server,
        running_chain(site, server, job_database, tmp_path, glexec=str(glexec)) as made,
    ):
        yield request.param, made


def payload(site: Site) -> int:
    """The host's pid of the payload that sleeps."""

    def look() -> list[int]:
        pids = processes_of(site, ALICE_UID)
        return [pid for pid in pids if b"611" in command_of(pid)]

    return int(wait_for(look, 60)[0])


def above(pid: int) -> int:
    return int(host_status(pid)["PPid"])


def front(site: Site) -> list[int]:
    """The processes between pilot and launcher: the client, or sudo."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if b"611" in line and (program_of(line) == "glexec" or line.split(b"\0")[0].endswith(b"sudo")):
            found.append(int(name))
    return found


VICTIMS: dict[str, Callable[[Site, int], list[int]]] = {
    "front": lambda site, pid: front(site),
    "launcher": lambda site, pid: [above(above(pid))],
    "init": lambda site, pid: [above(pid)],
}


def test_every_process_of_the_chain_in_turn(chain: tuple[str, Chain]) -> None:
    how, it = chain
    handles = it.send_pilots(1)
    for level, victims in VICTIMS.items():
        job = spec(level, argv=["sh", "-c", FIRST_ONLY], max_attempt=1, outputs=[{"lfn": "out.txt", "access": "vo"}])
        task = it.submit("alice", job)
        pid = payload(it.site)
        wait_for(lambda task=task: it.jobs(task["task_id"])[0]["status"] == "running", 30)  # type: ignore[misc]
        found = victims(it.site, pid)
        assert found, level
        for victim in found:
            os.kill(victim, signal.SIGKILL)
        assert it.wait(task["task_id"]) == {"finished": 1}, it.logs(handles)
        (one,) = it.jobs(task["task_id"])
        good, lost = one["attempts"]
        assert (good["status"], lost["status"]) == ("finished", "failed")
        (error,) = lost["errors"]
        assert (error["source"], error["code"], error["blame"]) == ("pilot", 1226, "site")
        reason = LOST[level] if isinstance(LOST[level], str) else LOST[level][how]  # type: ignore[index]
        assert error["diag"] == (
            f"the launcher was lost after the payload had started: {reason}; the payload's processes are gone; "
            "the site must act"
        )
        assert (lost["exit_code"], lost["account_uid"], lost["identity_switched"]) == (None, ALICE_UID, True)
        assert lost["started_at"] is not None
        assert processes_of(it.site, ALICE_UID) == []
        label = f"PandaID={one['panda_id']} attempt=1"
        record = [record for record in it.site.node.records() if record["id"] == label][-1]
        assert (record["rc"], record["lost"], record["identity_switched"]) == (137, reason, True)
    assert it.pilots_end(handles) == {PilotJobState.DONE}, "a node whose own check passes is not benched"
