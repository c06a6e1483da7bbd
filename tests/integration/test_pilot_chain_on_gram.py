"""The whole chain with its pilots on a real GRAM5 CE, as on an OSG site of 2009: only Airflow itself is not there.

Pilots come from one bundle, and prove who they are with the proxy that GRAM has delegated to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.dispatcher import job_database, spec, template_database
from support.gram import running_gram
from support.launcher import ALICE_UID, BOB_UID, PILOT_UID, Site, wait_for
from support.myproxy_server import ServerProcess
from support.node_processes import pilots_of, processes_of
from support.pilot_chain import PILOTS, Chain, Place, check_launchers_record, myproxy, put_bundle, running_chain, site
from support.postgres import Database, postgres

from airpanda.computing.elements import PilotJobState

__all__ = ["job_database", "myproxy", "postgres", "site", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture
def chain(site: Site, myproxy: ServerProcess, job_database: Database, tmp_path: Path) -> Iterator[Chain]:
    with running_gram(site) as gram:
        text = (
            f'kind = "gram"\ncontact = "{gram.contact}"\nconn_id = "c"\nca_dir = "{site.pki.ca_dir}"\n'
            f'directory = "{PILOTS}"\ncallback_host = "localhost"'
        )
        proxy, bundle = site.proxy("pilot", hours=20), put_bundle(site, tmp_path)
        place = Place(text, credential=proxy, brings_proxy=True, bundle=bundle)
        with running_chain(site, myproxy, job_database, tmp_path, place) as chain:
            yield chain


def test_pilots_run_two_owners_jobs_as_two_accounts_and_a_cancel_leaves_nothing(chain: Chain) -> None:
    job = {"argv": ["sh", "-c", "id -u > out.txt"], "outputs": [{"lfn": "out.txt"}]}
    owners = {"alice": ALICE_UID, "bob": BOB_UID}
    tasks = {uid: chain.submit(who, spec(who, **job)) for who, uid in owners.items()}
    handles = chain.send_pilots(2)
    for uid, task in tasks.items():
        assert chain.wait(task["task_id"], 180) == {"finished": 1}, chain.logs(handles)
        (one,) = chain.jobs(task["task_id"])
        (attempt,) = one["attempts"]
        assert (attempt["account_uid"], attempt["pilot_uid"]) == (uid, PILOT_UID)
        assert attempt["identity_switched"] is True
        check_launchers_record(chain, one, attempt)
        assert chain.http.get(f"/v1/file/{one['panda_id']}/out.txt").text == f"{uid}\n"
    assert chain.pilots_end(handles) == {PilotJobState.DONE}
    logs = chain.logs(handles)
    assert not [token for token in chain.tokens if token in logs]

    task = chain.submit("alice", spec("long", argv=["sleep", "87.5"], max_attempt=1))
    handles = chain.send_pilots(1)
    wait_for(lambda: chain.call("GET", f"/v1/task/{task['task_id']}/progress")["counts"].get("running"), 120)
    wait_for(lambda: chain.site.processes(ALICE_UID))
    chain.element().cancel(handles)
    wait_for(lambda: not processes_of(chain.site, ALICE_UID), 60)
    wait_for(lambda: not pilots_of(chain.site, PILOT_UID), 60)
    assert chain.pilots_end(handles) == {PilotJobState.CANCELLED}
