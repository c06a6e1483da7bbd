"""The whole chain but Airflow with its pilots on real computing elements: Slurm over SSH, and an ARC CE.

PostgreSQL, gateway over mutual TLS, MyProxy, submission, pilots, launcher and accounts are real.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.arc import running_arc
from support.dispatcher import job_database, spec, template_database
from support.launcher import ALICE_UID, BOB_UID, PILOT_UID, Site, wait_for
from support.myproxy_server import ServerProcess
from support.node_processes import pilots_of, processes_of
from support.pilot_chain import PILOTS, Chain, Place, myproxy, running_chain, site
from support.postgres import Database, postgres
from support.slurm import running_slurm
from support.sshd import running_sshd

from airpanda.computing.elements import PilotJobState, Purgeable

__all__ = ["job_database", "myproxy", "postgres", "site", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(600)]
OWNERS = {"alice": ALICE_UID, "bob": BOB_UID}


@contextmanager
def slurm_over_ssh(site: Site, directory: Path) -> Iterator[Place]:
    with running_slurm(site.node), running_sshd(site.node, directory) as sshd:
        ce = f'kind = "slurm"\nhost = "127.0.0.1"\nport = {sshd.port}\nconn_id = "c"\ndirectory = "{PILOTS}"\n'
        yield Place(ce + f'known_hosts = "{sshd.known_hosts}"', login=sshd.login)


@contextmanager
def arc(site: Site, directory: Path) -> Iterator[Place]:
    with running_arc(site) as ce:
        text = f'kind = "arc"\nurl = "{ce.url}"\nconn_id = "c"\nca_dir = "{site.pki.ca_dir}"'
        yield Place(text, credential=site.proxy("pilot", hours=20), brings_proxy=True)


@pytest.fixture(scope="module", name="place", params=[slurm_over_ssh, arc], ids=["slurm", "arc"])
def _place(site: Site, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with request.param(site, tmp_path_factory.mktemp("place")) as place:
        yield place


@pytest.fixture
def chain(site: Site, myproxy: ServerProcess, job_database: Database, tmp_path: Path, place: Place) -> Iterator[Chain]:
    with running_chain(site, myproxy, job_database, tmp_path, place) as chain:
        yield chain


def test_pilots_run_two_owners_jobs_as_two_accounts(chain: Chain) -> None:
    """Who runs is looked at from outside: by the host's process table, and by the launcher's own records."""
    job = {"argv": ["sh", "-c", "id -u > out.txt; sleep 2"], "outputs": [{"lfn": "out.txt"}]}
    before = len(chain.site.node.records())
    tasks = {uid: chain.submit(who, *[spec(f"{who}{i}", **job) for i in range(3)]) for who, uid in OWNERS.items()}
    handles = chain.send_pilots(2)
    element = chain.element()
    seen: set[int] = set()

    def seen_or_over() -> bool:
        seen.update(uid for uid in (ALICE_UID, BOB_UID, PILOT_UID) if chain.site.processes(uid))
        return len(seen) == 3 or all(status.state.is_final for status in element.status(handles).values())

    wait_for(seen_or_over, 120)
    assert seen == {ALICE_UID, BOB_UID, PILOT_UID}, chain.logs(handles)
    for uid, task in tasks.items():
        assert chain.wait(task["task_id"], 180) == {"finished": 3}, chain.logs(handles)
        for one in chain.jobs(task["task_id"]):
            (attempt,) = one["attempts"]
            assert (attempt["account_uid"], attempt["pilot_uid"]) == (uid, PILOT_UID)
            assert attempt["identity_switched"] is True
            assert chain.http.get(f"/v1/file/{one['panda_id']}/out.txt").text == f"{uid}\n"
    assert chain.pilots_end(handles) == {PilotJobState.DONE}
    records = [record for record in chain.site.node.records()[before:] if record.get("identity_switched")]
    assert {ALICE_UID, BOB_UID} <= {record["uid"] for record in records}
    logs = chain.logs(handles)
    assert not [token for token in chain.tokens if token in logs]


def test_a_cancelled_pilot_ends_its_payload_and_cleans_up(chain: Chain) -> None:
    task = chain.submit("alice", spec("long", argv=["sleep", "87.5"], max_attempt=1))
    handles = chain.send_pilots(1)
    wait_for(lambda: chain.call("GET", f"/v1/task/{task['task_id']}/progress")["counts"].get("running"), 120)
    wait_for(lambda: chain.site.processes(ALICE_UID))
    element = chain.element()
    element.cancel(handles)
    wait_for(lambda: all(status.state.is_final for status in element.status(handles).values()), 90)
    assert isinstance(element, Purgeable)
    element.purge(handles)  # ARC's fork back-end leaves running what it cancelled; without its directory it ends
    wait_for(lambda: not processes_of(chain.site, ALICE_UID), 60)
    wait_for(lambda: not pilots_of(chain.site, PILOT_UID), 60)
