"""A person's mapping is removed while jobs wait: the jobs keep, with the reason, and nobody runs as the pilot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.dispatcher import job_database, spec, template_database
from support.launcher import ALICE_UID, BOB_UID, PILOT_UID, Site, allow_sudo
from support.launcher_mappings import mapped_site
from support.myproxy_server import CONFIG, start_debian
from support.node_processes import processes_of
from support.pilot_chain import Chain, running_chain
from support.postgres import Database, postgres

from airpanda.computing.elements import PilotJobState
from airpanda_demo.worker_node import INSTALLED

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration]

REASONS = {"own": "no line for this DN", "lcmaps": "LCMAPS does not map this proxy"}
WAYS = {"own": INSTALLED.glexec, "lcmaps": INSTALLED.glexec_sudo}
"""Our own mapping behind the socket; Debian's LCMAPS behind the shipped sudo rule."""


@pytest.fixture(scope="module", name="site", params=["own", "lcmaps"])
def _site(request: pytest.FixtureRequest) -> Iterator[Site]:
    for site in mapped_site(request.param):
        allow_sudo(site)
        site.mapfile[site.pki.dn("pilot")] = "other"
        site.node.set_mapfile(site.mapfile)
        yield site


@pytest.fixture
def chain(site: Site, job_database: Database, tmp_path: Path) -> Iterator[Chain]:
    with (
        start_debian(site.pki, CONFIG.replace("cert_dir {certs}\n", "")) as server,
        running_chain(site, server, job_database, tmp_path, glexec=str(WAYS[site.mapping])) as chain,
    ):
        yield chain


def test_removing_a_mapping_while_jobs_wait_leaves_them_unharmed(chain: Chain) -> None:
    site = chain.site
    open_to_all = site.directory(mode=0o1777)
    job: dict[str, Any] = {
        "argv": ["sh", "-c", f'id -u > out.txt; : > "{open_to_all}/$PandaID"; sleep 0.3'],
        "outputs": [{"lfn": "out.txt", "access": "vo"}],
        "max_attempt": 1,
    }
    alice = chain.submit("alice", *[spec(f"a{i}", **job) for i in range(2)])
    bob = chain.submit("bob", *[spec(f"b{i}", **job) for i in range(2)])
    site.node.set_mapfile({dn: name for dn, name in site.mapfile.items() if dn != site.pki.dn("alice")})
    first = chain.send_pilots(1)
    assert chain.wait(bob["task_id"]) == {"finished": 2}, chain.logs(first)
    assert chain.pilots_end(first) == {PilotJobState.DONE}, "one person's trouble benches no node"

    jobs = chain.jobs(alice["task_id"])
    assert [one["status"] for one in jobs] == ["activated", "activated"]
    refused = [attempt for one in jobs for attempt in one["attempts"]]
    assert refused, chain.logs(first)
    for attempt in refused:
        (error,) = attempt["errors"]
        assert (error["source"], error["code"], error["blame"]) == ("pilot", 1226, "site")
        for word in ("the identity switch failed; the payload has not run", "203", REASONS[site.mapping]):
            assert word in error["diag"]
        assert (attempt["account_uid"], attempt["started_at"], attempt["exit_code"]) == (None, None, None)
        assert not attempt["identity_switched"]
        assert attempt["launcher"] is None
    assert REASONS[site.mapping] in next(one["reason"] for one in jobs if one["attempts"])
    assert owners(site, open_to_all) == {bob["first_panda_id"] + i: BOB_UID for i in range(2)}
    assert not processes_of(site, ALICE_UID)

    site.node.set_mapfile(site.mapfile)
    second = chain.send_pilots(1)
    assert chain.wait(alice["task_id"]) == {"finished": 2}, chain.logs(second)
    mine = {alice["first_panda_id"] + i: ALICE_UID for i in range(2)}
    theirs = {bob["first_panda_id"] + i: BOB_UID for i in range(2)}
    assert owners(site, open_to_all) == {**mine, **theirs}
    for task, uid in ((alice, ALICE_UID), (bob, BOB_UID)):
        for one in chain.jobs(task["task_id"]):
            good = one["attempts"][0]
            assert chain.http.get(f"/v1/file/{one['panda_id']}/out.txt").text == f"{uid}\n"
            assert (good["account_uid"], good["identity_switched"], good["pilot_uid"]) == (uid, True, PILOT_UID)
            assert (good["launcher"]["dn"], good["launcher"]["mapping"]) == (one["owner_dn"], site.mapping)
            assert good["launcher"]["launcher"] == {"own": "socket", "lcmaps": "sudo"}[site.mapping]
    ran = [record for record in site.node.records() if record.get("identity_switched")]
    assert ran
    assert all(record["uid"] not in (0, PILOT_UID) for record in ran)
    assert chain.pilots_end(second) == {PilotJobState.DONE}


def owners(site: Site, directory: Path) -> dict[int, int]:
    """Whose process each job's payload was: the kernel has written it to the file that it made."""
    return {int(path.name): path.stat().st_uid for path in site.node.path(directory).iterdir()}
