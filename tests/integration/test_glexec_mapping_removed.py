"""A person's mapping is removed while jobs wait: the jobs keep, with the reason, and nobody runs as the pilot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.dispatcher import job_database, spec, template_database
from support.launcher import ALICE_UID, BOB_UID, PILOT_UID, Site, make_site, wait_for
from support.myproxy_server import CONFIG, start_debian
from support.pilot_chain import Chain, running_chain
from support.postgres import Database, postgres

from airpanda.computing.elements import PilotJobState

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration]


@pytest.fixture(scope="module", name="site")
def _site() -> Iterator[Site]:
    for site in make_site():
        site.mapfile[site.pki.dn("pilot")] = "other"
        site.node.set_mapfile(site.mapfile)
        yield site


@pytest.fixture
def chain(site: Site, job_database: Database, tmp_path: Path) -> Iterator[Chain]:
    with (
        start_debian(site.pki, CONFIG.replace("cert_dir {certs}\n", "")) as server,
        running_chain(site, server, job_database, tmp_path) as chain,
    ):
        yield chain


def test_removing_a_mapping_while_jobs_wait_leaves_them_unharmed(chain: Chain) -> None:
    argv = ["sh", "-c", "id -u > out.txt"]
    job = {"argv": argv, "outputs": [{"lfn": "out.txt", "access": "vo"}], "max_attempt": 1}
    alice = chain.submit("alice", *[spec(f"a{i}", **job) for i in range(2)])
    people = dict(chain.site.mapfile)
    del people[chain.site.pki.dn("alice")]
    chain.site.node.set_mapfile(people)

    refused = chain.send_pilots(1)
    assert chain.pilots_end(refused) == {PilotJobState.DONE}, chain.logs(
        refused
    )  # one person's trouble benches no node
    jobs = chain.jobs(alice["task_id"])
    assert [one["status"] for one in jobs] == ["activated", "activated"]
    (attempt,) = [attempt for one in jobs for attempt in one["attempts"]]
    (error,) = attempt["errors"]
    assert (error["code"], error["blame"]) == (1226, "site")
    assert "203" in error["diag"]
    assert "no line for this DN" in error["diag"]
    assert attempt["account_uid"] is None
    assert not attempt["identity_switched"]

    bob = chain.submit("bob", spec("b", **job))
    chain.site.node.set_mapfile(chain.site.mapfile)
    handles = chain.send_pilots(1)
    assert chain.wait(alice["task_id"]) == {"finished": 2}, chain.logs(handles)
    assert chain.wait(bob["task_id"]) == {"finished": 1}, chain.logs(handles)
    for task, uid in ((alice, ALICE_UID), (bob, BOB_UID)):
        for one in chain.jobs(task["task_id"]):
            assert chain.http.get(f"/v1/file/{one['panda_id']}/out.txt").text == f"{uid}\n"
    ran = [record for record in chain.site.node.records() if record.get("identity_switched")]
    assert ran
    assert all(record["uid"] not in (0, PILOT_UID) for record in ran)
    assert wait_for(lambda: chain.pilots_end(handles) == {PilotJobState.DONE}, 60)
